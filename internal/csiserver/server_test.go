package csiserver

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	for _, endpoint := range []string{"unix://" + path, "unix:" + path, path} {
		l, err := ListenUnix(endpoint)
		if err != nil {
			t.Fatalf("%s: %v", endpoint, err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
		l.Close()
	}
	for _, endpoint := range []string{"", "unix://", "tcp://127.0.0.1:1"} {
		if l, err := ListenUnix(endpoint); err == nil {
			l.Close()
			t.Errorf("%q is taken for a Unix socket", endpoint)
		}
	}
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := ListenUnix(file); err == nil {
		l.Close()
		t.Error("a file was replaced by a socket")
	}
}
