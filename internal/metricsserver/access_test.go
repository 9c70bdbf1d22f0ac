package metricsserver

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAccess: metrics name claims, so a caller from another host gets them with the token, or where the program was
// told to be open.
func TestAccess(t *testing.T) {
	dir := t.TempDir()
	token, empty := filepath.Join(dir, "token"), filepath.Join(dir, "empty")
	for file, text := range map[string]string{token: "secret\n", empty: " \n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "slipstream_group_volume_info")
	})
	for _, tt := range []struct {
		name   string
		access access
		from   string
		header string
		status int
		says   string
	}{
		{"loopback", access{}, "127.0.0.1:1", "", http.StatusOK, ""},
		{"loopback, version 6", access{tokenFile: token}, "[::1]:1", "", http.StatusOK, ""},
		{"another host", access{}, "10.0.0.1:1", "", http.StatusUnauthorized, "loopback only"},
		{"another host with a token that was not asked for", access{}, "10.0.0.1:1", "Bearer ", http.StatusUnauthorized,
			"loopback only"},
		{"no address", access{}, "", "", http.StatusUnauthorized, "loopback only"},
		{"the token", access{tokenFile: token}, "10.0.0.1:1", "Bearer secret", http.StatusOK, ""},
		{"no token", access{tokenFile: token}, "10.0.0.1:1", "", http.StatusUnauthorized, "bearer token"},
		{"another token", access{tokenFile: token}, "10.0.0.1:1", "Bearer secret2", http.StatusUnauthorized, "bearer token"},
		{"the token without its scheme", access{tokenFile: token}, "10.0.0.1:1", "secret", http.StatusUnauthorized,
			"bearer token"},
		{"an empty file opens nothing", access{tokenFile: empty}, "10.0.0.1:1", "Bearer ", http.StatusUnauthorized,
			"cannot be read"},
		{"a missing file opens nothing", access{tokenFile: dir + "/none"}, "10.0.0.1:1", "Bearer ",
			http.StatusUnauthorized, "cannot be read"},
		{"open", access{open: true}, "10.0.0.1:1", "", http.StatusOK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr = tt.from
			r.Header.Set("X-Forwarded-For", "127.0.0.1")
			if tt.header != "" {
				r.Header.Set("Authorization", tt.header)
			}
			w := httptest.NewRecorder()
			tt.access.guard(metrics).ServeHTTP(w, r)
			if body := w.Body.String(); w.Code != tt.status || !strings.Contains(body, tt.says) ||
				(w.Code != http.StatusOK) == strings.Contains(body, "volume_info") {
				t.Errorf("%d: %q", w.Code, body)
			}
		})
	}
}

// TestTokenIsReplaced: a new token is asked for at the next call.
func TestTokenIsReplaced(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	a := access{tokenFile: file}
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = "10.0.0.1:1"
	r.Header.Set("Authorization", "Bearer one")
	for text, served := range map[string]bool{"one": true, "two": false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if refusal := a.refuse(r); (refusal == "") != served {
			t.Errorf("token %s: %q", text, refusal)
		}
	}
}

func TestListen(t *testing.T) {
	for name, o := range map[string]Options{
		"open and token": {Addr: "127.0.0.1:0", TokenFile: "/etc/hostname", Open: true},
		"no address":     {Addr: "192.0.2.1:1"},
	} {
		if s, err := Listen(o); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if s, err := Listen(Options{}); s != nil || err != nil {
		t.Errorf("without an address: %v, %v", s, err)
	}
	// The token may come later.
	s, err := Listen(Options{Addr: "127.0.0.1:0", TokenFile: "/no/such/token"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, http.NotFoundHandler()) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
