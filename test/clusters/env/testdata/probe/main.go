// Command probe is both ends of the network tests: it answers, and on request it calls others from where it runs.
//
//	GET /                   "probe"
//	GET /call?to=HOST:PORT  one HTTP call to another probe; 200 when it answered within two seconds
//	GET /hold?to=HOST:PORT  opens a connection to another probe's echo port and sends a byte on it every 50 ms
//	GET /held               milliseconds since the last byte came back on that connection, or "broken: why"
//
// The echo port is the one after the HTTP port.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

var held struct {
	sync.Mutex
	last time.Time
	err  error
}

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	echo, err := net.Listen("tcp4", fmt.Sprintf(":%d", port+1))
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				panic(err)
			}
			go io.Copy(c, c)
		}
	}()
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "probe") })
	http.HandleFunc("/call", func(w http.ResponseWriter, r *http.Request) {
		resp, err := client.Get("http://" + r.FormValue("to") + "/")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	})
	http.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		c, err := net.DialTimeout("tcp4", r.FormValue("to"), 2*time.Second)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		held.last = time.Now()
		go hold(c)
	})
	http.HandleFunc("/held", func(w http.ResponseWriter, _ *http.Request) {
		held.Lock()
		defer held.Unlock()
		if held.err != nil {
			fmt.Fprintf(w, "broken: %v", held.err)
			return
		}
		fmt.Fprint(w, time.Since(held.last).Milliseconds())
	})
	panic(http.ListenAndServe(fmt.Sprintf("0.0.0.0:%d", port), nil))
}

func hold(c net.Conn) {
	b := []byte{1}
	for {
		_, err := c.Write(b)
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		held.Lock()
		if err == nil {
			held.last = time.Now()
		}
		held.err = err
		held.Unlock()
		if err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
