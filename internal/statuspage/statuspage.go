// Package statuspage is a page of a replicator for people: the groups of the site, their roles, lag and journal over
// the last half hour, and what to do next about each. The page only shows. All of it is in the program; it loads
// nothing from elsewhere, and its content security policy forbids that.
//
// It has no authentication, as it is for people on the node: on a loopback address. On another address it shows names
// of groups and claims to every caller. A page of another origin cannot read it: the server refuses calls whose
// Host is no loopback name or address, as long as it listens on loopback only, and sends no CORS headers.
//
// A Server is used by one goroutine; its handlers run concurrently.
package statuspage

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/advice"
	"github.com/slipstream-storage/slipstream/internal/tcplisten"
	"github.com/slipstream-storage/slipstream/internal/wordjson"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

//go:embed assets
var assets embed.FS

const (
	requestTimeout = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	// maxConnections is for a few people.
	maxConnections = 32
	// listTimeout bounds asking for the groups.
	listTimeout = 5 * time.Second
)

// policy allows what the page has: its own script, style and status. Nothing else is loaded, sent or framed.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Groups lists the groups of the site.
type Groups func(ctx context.Context) ([]*sidecarpb.GroupStatus, error)

// Points returns the oldest and the newest recovery point of a group.
type Points func(ctx context.Context, group string) (*sidecarpb.GroupPointsResponse, error)

// Options configure a Server.
type Options struct {
	// Listen is host:port. Without a host it is the loopback address.
	Listen string
	// Site and Version are shown.
	Site, Version string
	Groups        Groups
	// Points is nil if there are no recovery points to show.
	Points Points
}

// Server serves the page until Close.
type Server struct {
	opts     Options
	history  history
	loopback bool // Listen is a loopback address
	server   *http.Server
	listener net.Listener
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// Start listens and serves. The caller goes on without a page when it fails: volumes matter more.
func Start(o Options) (*Server, error) {
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("address of the status page: %w", err)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listen for the status page: %w", err)
	}
	bounded := tcplisten.New(listener, tcplisten.Options{Port: "status", Waiting: maxConnections})
	s := &Server{opts: o, listener: bounded, loopback: isLoopback(host)}
	s.server = &http.Server{Handler: s.handler(), ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.running.Go(func() { s.sample(ctx) })
	s.running.Go(func() {
		if err := s.server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "The status page has ended")
		}
	})
	return s, nil
}

// Addr is where the page is.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close ends the server.
func (s *Server) Close() error {
	s.stop()
	err := s.server.Close()
	s.running.Wait()
	return err
}

// isLoopback reports whether a host of Listen or of a request is this machine for itself.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && address.IsLoopback()
}

// sample fills the history.
func (s *Server) sample(ctx context.Context) {
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		if groups, err := s.groups(ctx); err == nil {
			s.history.add(time.Now(), groups)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) groups(ctx context.Context) ([]*sidecarpb.GroupStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return s.opts.Groups(ctx)
}

func (s *Server) handler() http.Handler {
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /status.json", s.status)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		// Else a page whose name was pointed at 127.0.0.1 could read this one.
		if s.loopback && !isLoopback(host) {
			http.Error(w, "the status page is for this machine", http.StatusForbidden)
			return
		}
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// answer is /status.json.
type answer struct {
	Site       string       `json:"site"`
	Version    string       `json:"version"`
	UnixMillis int64        `json:"unixMillis"`
	Groups     []groupState `json:"groups"`
}

type groupState struct {
	Status any           `json:"status"`
	Next   advice.Advice `json:"next"`
	// Points is null if they are not known.
	Points  any     `json:"points"`
	History []point `json:"history"`
}

// points are the recovery points of a group. A group that has none, such as one in its first sync, is no error.
func (s *Server) points(ctx context.Context, g *sidecarpb.GroupStatus) any {
	if s.opts.Points == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	points, err := s.opts.Points(ctx, g.GetName())
	if err != nil {
		return nil
	}
	value, err := wordjson.Value(points)
	if err != nil {
		return nil
	}
	return value
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	groups, err := s.groups(r.Context())
	if err != nil {
		http.Error(w, "the groups cannot be listed: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	result := answer{Site: s.opts.Site, Version: s.opts.Version, UnixMillis: time.Now().UnixMilli(),
		Groups: []groupState{}}
	for _, g := range groups {
		value, err := wordjson.Value(g)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		result.Groups = append(result.Groups, groupState{value, advice.Next(s.opts.Site, g), s.points(r.Context(), g),
			s.history.of(g.GetName())})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(result) // the caller may be gone
}
