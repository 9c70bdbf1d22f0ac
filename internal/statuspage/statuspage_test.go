package statuspage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/internal/testbrowser"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everyState has a group in each state, with long names and reasons.
func everyState() []*sidecarpb.GroupStatus {
	var groups []*sidecarpb.GroupStatus
	for state := range sidecarpb.GroupState_name {
		g := &sidecarpb.GroupStatus{
			Name: "shop-" + sidecarpb.GroupState(state).Word(), State: sidecarpb.GroupState(state),
			Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "site-b", Connected: state == 3, Promotable: true,
			LagSeconds: new(0.25), LagBytes: new(uint64(1 << 20)), JournalUsedBytes: 300 << 20, JournalSizeBytes: 1 << 30,
			RpoTargetSeconds: 5, LastReplicatedUnixNanos: new(time.Now().UnixNano()),
			Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "vol-1854d346-9b09-45e5-8302-ade1ef9a5bae", SizeBytes: 1 << 30,
				ClaimName: "orders", ClaimNamespace: "shop"}},
		}
		switch g.GetState() {
		case sidecarpb.GroupState_GROUP_STATE_IDLE:
			g.Peer = ""
		case sidecarpb.GroupState_GROUP_STATE_SYNCING:
			g.SyncDoneBytes, g.SyncTotalBytes = new(uint64(3<<30)), new(uint64(10<<30))
		case sidecarpb.GroupState_GROUP_STATE_FAILED:
			g.Role, g.LagSeconds, g.LagBytes = 0, nil, nil
			g.StateReason = "the journal in /srv/slipstream/pool/groups/e9d69ed7-ac4d-47d4-a190-86aa800ed22f/journal " +
				"is damaged <script>alert(1)</script>"
		}
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b *sidecarpb.GroupStatus) int { return cmp.Compare(a.GetState(), b.GetState()) })
	return groups
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

func list(groups ...*sidecarpb.GroupStatus) Groups {
	return func(context.Context) ([]*sidecarpb.GroupStatus, error) { return groups, nil }
}

func get(t *testing.T, method, address, host string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		request.Host = host
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

func TestStatus(t *testing.T) {
	s := start(t, Options{Listen: ":0", Site: "site-a", Version: "v1", Groups: list(everyState()...)})
	if !strings.HasPrefix(s.Addr(), "127.0.0.1:") {
		t.Errorf("without a host it listens on %s", s.Addr())
	}
	response, text := get(t, "GET", "http://"+s.Addr()+"/status.json", "")
	var a struct {
		Site   string
		Groups []struct {
			Status  struct{ Name, State string }
			Next    struct{ Text, Command string }
			History []point
		}
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil || a.Site != "site-a" ||
		len(a.Groups) != len(sidecarpb.GroupState_name) || a.Groups[0].Next.Text == "" || a.Groups[0].History == nil {
		t.Errorf("%v: %s", err, text)
	}
	if got := response.Header.Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'; ") {
		t.Errorf("the policy is %q", got)
	}
	if got := response.Header.Get("Access-Control-Allow-Origin"); got != "" {
		t.Errorf("other origins may read it: %q", got)
	}
}

// The page takes no orders, and none from a page of another name.
func TestRefusals(t *testing.T) {
	s := start(t, Options{Listen: "127.0.0.1:0", Site: "site-a", Groups: list()})
	for _, tc := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/", "", 200}, {"GET", "/", "localhost:80", 200}, {"GET", "/", "[::1]", 200},
		{"GET", "/status.json", "evil.example", 403}, {"GET", "/", "10.0.0.1:9480", 403}, {"GET", "/", "127.0.0.1.evil", 403},
		{"POST", "/status.json", "", 405}, {"DELETE", "/", "", 405}, {"GET", "/none", "", 404},
		{"GET", "/../go.mod", "", 404},
	} {
		if response, _ := get(t, tc.method, "http://"+s.Addr()+tc.path, tc.host); response.StatusCode != tc.want {
			t.Errorf("%s %s for host %q: %s, want %d", tc.method, tc.path, tc.host, response.Status, tc.want)
		}
	}
	for _, bad := range []string{"", "nowhere", "192.0.2.1:1", "127.0.0.1:99999"} {
		if s, err := Start(Options{Listen: bad, Groups: list()}); err == nil {
			t.Errorf("it listens on %q", bad)
			s.Close()
		}
	}
	broken := start(t, Options{Listen: "127.0.0.1:0", Groups: func(context.Context) ([]*sidecarpb.GroupStatus, error) {
		return nil, errors.New("a bad disk")
	}})
	if response, text := get(t, "GET", "http://"+broken.Addr()+"/status.json", ""); response.StatusCode != 503 ||
		!strings.Contains(text, "a bad disk") {
		t.Errorf("%s: %s", response.Status, text)
	}
}

// The history is bounded, keeps what is unknown apart from zero, and forgets groups that are gone.
func TestHistory(t *testing.T) {
	var h history
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range samples + 10 {
		g := &sidecarpb.GroupStatus{Name: "a", JournalUsedBytes: int64(i)}
		if i%2 == 0 {
			g.LagSeconds = new(float64(i))
		}
		h.add(at.Add(time.Duration(i)*sampleInterval), []*sidecarpb.GroupStatus{g, {Name: "b"}})
	}
	points := h.of("a")
	if len(points) != samples || points[0].JournalUsed != 10 || points[samples-1].JournalUsed != samples+9 ||
		*points[0].LagSeconds != 10 || points[1].LagSeconds != nil {
		t.Errorf("%d points, first %+v", len(points), points[0])
	}
	h.add(at, []*sidecarpb.GroupStatus{{Name: "a"}})
	if len(h.of("b")) != 0 || len(h.groups) != 1 {
		t.Error("a group that is gone is still there")
	}
	many := make([]*sidecarpb.GroupStatus, maxGroups+5)
	for i := range many {
		many[i] = &sidecarpb.GroupStatus{Name: strings.Repeat("x", i+1)}
	}
	if h.add(at, many); len(h.groups) != maxGroups {
		t.Errorf("%d histories", len(h.groups))
	}
}

// In Chromium the page shows each group with what to do, loads nothing from elsewhere, and no text lies over another.
func TestPage(t *testing.T) {
	browser := testbrowser.Open(t)
	s := start(t, Options{Listen: "127.0.0.1:0", Site: "site-a", Version: "v1", Groups: list(everyState()...),
		Points: func(_ context.Context, group string) (*sidecarpb.GroupPointsResponse, error) {
			if group != "shop-streaming" {
				return nil, errors.New("the first copy is running")
			}
			return &sidecarpb.GroupPointsResponse{Oldest: &sidecarpb.RecoveryPoint{Ordinal: 4711},
				Newest: &sidecarpb.RecoveryPoint{Ordinal: 4712, UnixNanos: new(time.Now().UnixNano())}}, nil
		}})
	s.history.mu.Lock()
	s.history.groups = nil // a sample of now would be the oldest
	s.history.mu.Unlock()
	for i := range samples {
		groups := everyState()
		for _, g := range groups {
			g.LagSeconds = new(0.2 + 0.1*math.Sin(float64(i)/20))
			g.JournalUsedBytes = int64(i) << 20
			if i > 100 && i < 150 {
				g.LagSeconds = nil
			}
		}
		s.history.add(time.Now().Add(time.Duration(i-samples)*sampleInterval), groups)
	}
	backgrounds := map[bool]string{}
	for _, view := range testbrowser.Views() {
		t.Run(view.String(), func(t *testing.T) {
			p := browser.Look(t, "http://"+s.Addr()+"/", view, "document.querySelectorAll('section.group').length > 0", "status")
			p.Check(t)
			for _, want := range []string{"site-a", "shop-streaming", "Nothing to do", "slipctl group wait shop-syncing",
				"3.00 GiB of 10.0 GiB", "alert(1)", "largest 300 ms",
				"ordinal 4711 to "} {
				if !strings.Contains(p.Text, want) {
					t.Errorf("the page does not show %q:\n%s", want, p.Text)
				}
			}
			for _, r := range p.Requests {
				if !strings.HasPrefix(r, "http://"+s.Addr()+"/") && !strings.HasPrefix(r, "data:") {
					t.Errorf("the page loads %s", r)
				}
			}
			backgrounds[view.Dark] = p.Background
		})
	}
	if backgrounds[true] == backgrounds[false] {
		t.Errorf("light and dark have the same background %s", backgrounds[true])
	}
}
