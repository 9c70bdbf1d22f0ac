package metricsserver

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"k8s.io/klog/v2"
)

// Options say where metrics are served, and to whom.
type Options struct {
	// Addr is host:port; empty: there are no metrics.
	Addr string
	// TokenFile has the token that callers from other hosts show. It is read at each call, so it may be replaced.
	// Without it only callers from loopback are served.
	TokenFile string
	// Open serves everybody who reaches the port.
	Open bool
}

// Add adds the flags.
func (o *Options) Add(flags *flag.FlagSet) {
	flags.StringVar(&o.Addr, "metrics-addr", "", "host:`port` for Prometheus metrics at "+path+"; empty: no metrics")
	flags.StringVar(&o.TokenFile, "metrics-token-file", "",
		"`file` with the bearer token for readers of metrics on other hosts; without it only loopback is served")
	flags.BoolVar(&o.Open, "metrics-open", false,
		"serve metrics without a token to every caller; metrics name claims and namespaces")
}

// access decides who may read.
type access struct {
	tokenFile string
	open      bool
}

// token is what is in the file now, without white space around it.
func (a access) token() ([]byte, error) {
	text, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("token for metrics: %w", err)
	}
	token := bytes.TrimSpace(text)
	if len(token) == 0 {
		return nil, fmt.Errorf("token for metrics: %s is empty; write a random text into it", a.tokenFile)
	}
	return token, nil
}

// guard lets callers from loopback pass, and others that show the token.
func (a access) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refusal := a.refuse(r); refusal != "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, refusal, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse says why a caller gets nothing; empty: it is served.
func (a access) refuse(r *http.Request) string {
	if a.open || isLoopback(r.RemoteAddr) {
		return ""
	}
	if a.tokenFile == "" {
		return "metrics are served on loopback only: call from there (kubectl port-forward), or give the program " +
			"--metrics-token-file"
	}
	want, err := a.token()
	if err != nil {
		klog.ErrorS(err, "Refused a reader of metrics")
		return "the token for metrics cannot be read here; the program's log says why"
	}
	shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	// Sums have one length, so that the time of comparing says nothing about the token's.
	a1, a2 := sha256.Sum256([]byte(shown)), sha256.Sum256(want)
	if !ok || subtle.ConstantTimeCompare(a1[:], a2[:]) != 1 {
		return "metrics want the bearer token of --metrics-token-file"
	}
	return ""
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && net.ParseIP(host).IsLoopback()
}
