package appmeta

import (
	"flag"
	"os"
	"testing"

	"lifeboat.dev/lifeboat/internal/appmeta/apiserver"
)

var servers apiserver.Servers

var update = flag.Bool("update", false, "write the golden files of testdata anew; read the difference before you commit it")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(servers.Main(m))
}
