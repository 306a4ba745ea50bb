package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// spoken is a connection on which a client has said all it will ever say.
type spoken struct {
	net.Conn // never used
	io.Reader
}

func (spoken) SetReadDeadline(time.Time) error { return nil }

func (s spoken) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func say(parts ...[]byte) net.Conn { return spoken{Reader: bytes.NewReader(bytes.Join(parts, nil))} }

// record wraps handshake bytes in a TLS record.
func record(body []byte) []byte {
	return append([]byte{0x16, 3, 1, byte(len(body) >> 8), byte(len(body))}, body...)
}

func TestAHelloMayTakeMoreThanOneRecordButNotMoreThanTheLimit(t *testing.T) {
	body := helloBody(t, "manager.lifeboat")
	name, read, err := readHello(say(record(body[:50]), record(body[50:])), time.Second)
	if want := append(record(body[:50]), record(body[50:])...); err != nil || name != "manager.lifeboat" || !bytes.Equal(read, want) {
		t.Errorf("%q, %d bytes, %v", name, len(read), err)
	}
	// A ClientHello that announces 60,000 bytes and sends them in full records.
	long := append([]byte{1, 0, 0xea, 0x60}, make([]byte, 60000)...)
	_, _, err = readHello(say(record(long[:16000]), record(long[16000:32000]), record(long[32000:48000]), record(long[48000:])), time.Second)
	if !errors.Is(err, errTooLarge) {
		t.Errorf("%v, want errTooLarge", err)
	}
}

func TestReadHelloNamesWhatIsWrong(t *testing.T) {
	body := helloBody(t, "manager.lifeboat")
	for name, c := range map[string]struct {
		conn net.Conn
		want error
	}{
		"nothing":         {say(), errNothing},
		"half":            {say(record(body)[:60]), errCut},
		"garbage":         {say([]byte("GET / HTTP/1.1\r\n\r\n")), errNotTLS},
		"no server name":  {say(record(helloBody(t, ""))), errNoName},
		"a server's word": {say(record([]byte{2, 0, 0, 0})), errNotTLS},
	} {
		if _, _, err := readHello(c.conn, time.Second); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	near, _ := net.Pipe()
	defer func() { _ = near.Close() }()
	if _, _, err := readHello(near, 20*time.Millisecond); !errors.Is(err, errTooSlow) {
		t.Errorf("silence: %v", err)
	}
}

// Whatever a stranger sends, the gateway neither breaks nor reads a name that was not sent.
func TestAMangledHelloIsRefusedOrReadAsItIs(t *testing.T) {
	hello := record(helloBody(t, "manager.lifeboat"))
	for i := range hello {
		for _, b := range []byte{0, 1, 0x7f, 0xff, hello[i] ^ 0x20} {
			mangled := bytes.Clone(hello)
			mangled[i] = b
			name, read, err := readHello(say(mangled), time.Second)
			if err == nil && (!bytes.Contains(mangled, []byte(name)) || !bytes.HasPrefix(mangled, read)) {
				t.Errorf("byte %d = %#x: %q after %d bytes", i, b, name, len(read))
			}
		}
		if _, _, err := readHello(say(hello[:i]), time.Second); err == nil {
			t.Errorf("the first %d bytes were taken for a whole", i)
		}
	}
}

func helloBody(t *testing.T, serverName string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	defer func() { _ = far.Close() }()
	go func() {
		_ = tls.Client(near, &tls.Config{MinVersion: tls.VersionTLS13, ServerName: serverName, InsecureSkipVerify: true}).Handshake()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(far, body); err != nil {
		t.Fatal(err)
	}
	return body
}
