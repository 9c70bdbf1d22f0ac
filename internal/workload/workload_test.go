package workload

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestParseKind(t *testing.T) {
	for _, k := range []Kind{SQLite, Postgres} {
		if got, err := ParseKind(string(k)); err != nil || got != k {
			t.Errorf("ParseKind(%q) = %q, %v", k, got, err)
		}
	}
	if _, err := ParseKind("oracle"); err == nil || !strings.Contains(err.Error(), "sqlite and postgres") {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestReadAcks(t *testing.T) {
	at := time.Unix(1700000000, 123456789)
	want := []Ack{
		{ID: 1, Client: 0, Start: at, End: at.Add(time.Millisecond)},
		{ID: 2, Client: 3, Start: at.Add(time.Second), End: at.Add(2 * time.Second)},
	}
	var log []byte
	for _, a := range want {
		log = a.appendTo(log)
	}
	read := func(log []byte) ([]Ack, error) {
		var got []Ack
		err := ReadAcks(bytes.NewReader(log), func(a Ack) { got = append(got, a) })
		return got, err
	}
	got, err := read(log)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Cut anywhere, as a killed writer leaves it, the log holds exactly its whole lines.
	for n := range len(log) {
		got, err := read(log[:n])
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if want := bytes.Count(log[:n], []byte("\n")); len(got) != want {
			t.Fatalf("cut at %d: %d acknowledgements, want %d", n, len(got), want)
		}
	}
	if _, err := read([]byte("1 2 3 4\nnonsense\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("damaged line: %v", err)
	}
}

// at makes an acknowledgement between two points in time, in milliseconds.
func at(id int64, start, end int) Ack {
	base := time.Unix(1000, 0)
	return Ack{ID: id, Start: base.Add(time.Duration(start) * time.Millisecond),
		End: base.Add(time.Duration(end) * time.Millisecond)}
}

func TestCompare(t *testing.T) {
	end := time.Unix(1000, 0).Add(100 * time.Millisecond)
	tests := []struct {
		name        string
		contents    Contents
		acks        []Ack
		want        Result
		wantInstant bool
	}{
		{"empty", Contents{}, nil, Result{}, true},
		{
			"complete",
			Contents{Orders: []int64{1, 2}, Movements: []int64{1, 2}},
			[]Ack{at(1, 0, 10), at(2, 10, 20)},
			Result{Orders: 2, Movements: 2, LastOrder: 2}, true,
		},
		{
			"one under way between its commits",
			Contents{Orders: []int64{1}, Movements: []int64{1, 2}},
			[]Ack{at(1, 0, 10)},
			Result{Orders: 1, Movements: 2, LastOrder: 1, MovementsWithoutOrder: 1}, true,
		},
		{
			"one committed but not acknowledged",
			Contents{Orders: []int64{1, 2}, Movements: []int64{1, 2}},
			[]Ack{at(1, 0, 10)},
			Result{Orders: 2, Movements: 2, LastOrder: 2}, true,
		},
		{
			"a lost tail",
			Contents{Orders: []int64{1}, Movements: []int64{1}},
			[]Ack{at(1, 0, 10), at(2, 10, 30), at(3, 30, 60)},
			Result{Orders: 1, Movements: 1, LastOrder: 1, LostOrders: 2, LostSpan: 70 * time.Millisecond}, true,
		},
		{
			"an order without its movement",
			Contents{Orders: []int64{1, 2}, Movements: []int64{1}},
			[]Ack{at(1, 0, 10), at(2, 10, 20)},
			Result{Orders: 2, Movements: 1, LastOrder: 2, OrdersWithoutStock: 1}, false,
		},
		{
			"the sales are older than the stock",
			Contents{Orders: []int64{1}, Movements: []int64{1, 2, 3}},
			[]Ack{at(1, 0, 10), at(2, 10, 20), at(3, 20, 30)},
			Result{Orders: 1, Movements: 3, LastOrder: 1, MovementsWithoutOrder: 2, LostOrders: 2,
				LostSpan: 80 * time.Millisecond}, false,
		},
		{
			"a hole before a later order",
			Contents{Orders: []int64{1, 3}, Movements: []int64{1, 3}},
			[]Ack{at(1, 0, 10), at(2, 10, 20), at(3, 20, 30)},
			Result{Orders: 2, Movements: 2, LastOrder: 3, LostOrders: 1, OutOfOrder: 1, LostSpan: 80 * time.Millisecond}, false,
		},
		{
			"a hole beside a concurrent order is none",
			Contents{Orders: []int64{1, 3}, Movements: []int64{1, 3}},
			[]Ack{at(1, 0, 10), at(2, 10, 20), at(3, 15, 30)},
			Result{Orders: 2, Movements: 2, LastOrder: 3, LostOrders: 1, LostSpan: 80 * time.Millisecond}, true,
		},
		{
			"the stock does not add up",
			Contents{Taken: 3, MovedOut: 4}, nil,
			Result{Damage: []string{"stock database: quantities fell by 3 but movements add up to 4"}}, false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := compare(tt.contents, tt.acks, end)
			tt.want.IDs = tt.contents.Orders
			for _, a := range tt.acks {
				if !slices.Contains(tt.contents.Orders, a.ID) {
					tt.want.Lost = append(tt.want.Lost, a.ID)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if err := got.OneInstant(1); (err == nil) != tt.wantInstant {
				t.Errorf("OneInstant = %v, want ok %v", err, tt.wantInstant)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	if got := Summarize(nil); got != (Stats{}) {
		t.Errorf("of nothing: %+v", got)
	}
	var acks []Ack
	for i := range 100 {
		acks = append(acks, at(int64(i), i*10, i*10+1+i/99*9)) // 99 of 1 ms, one of 10 ms
	}
	got := Summarize(acks)
	if got.Orders != 100 || got.P50.Round(time.Millisecond) != time.Millisecond ||
		got.Max.Round(time.Millisecond) != 10*time.Millisecond {
		t.Errorf("got %+v", got)
	}
	if got.OrdersPerSecond < 99.9 || got.OrdersPerSecond > 100.1 {
		t.Errorf("orders per second = %v, want 100", got.OrdersPerSecond)
	}
}

func TestTimeSeriesShowsStalls(t *testing.T) {
	samples := TimeSeries([]Ack{at(1, 0, 10), at(2, 10, 20), at(3, 310, 320), at(4, 410, 420)}, 100*time.Millisecond)
	var got []float64
	for _, s := range samples {
		got = append(got, s.OrdersPerSecond)
	}
	if diff := cmp.Diff([]float64{20, 0, 0, 10}, got); diff != "" {
		t.Error(diff)
	}
}

// testDirs makes the directories of a shop. PostgreSQL runs as a user of its own and has to get at them.
func testDirs(t *testing.T) Dirs {
	t.Helper()
	// Not t.TempDir: its path carries the test's name, and a Unix socket's path is short.
	root, err := os.MkdirTemp("", "shop")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	dirs := Dirs{Stock: filepath.Join(root, "a"), Sales: filepath.Join(root, "b"), Run: filepath.Join(root, "run")}
	for _, dir := range []string{root, dirs.Stock, dirs.Sales, dirs.Run} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dirs
}

func forEachKind(t *testing.T, test func(t *testing.T, kind Kind)) {
	for _, kind := range []Kind{SQLite, Postgres} {
		t.Run(string(kind), func(t *testing.T) {
			if kind == Postgres {
				if _, err := postgresBin(); err != nil {
					if !errors.Is(err, ErrNoPostgres) || testenv.Strict() {
						t.Fatal(err)
					}
					t.Skip(err)
				}
			}
			test(t, kind)
		})
	}
}

func TestRunAndCheck(t *testing.T) {
	forEachKind(t, func(t *testing.T, kind Kind) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		dirs := testDirs(t)
		var acks []Ack
		// Twice, because the second run finds the databases of the first.
		for range 2 {
			shop, err := Open(ctx, kind, dirs, 2)
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			runCtx, stop := context.WithCancel(ctx)
			logged := writerFunc(func(p []byte) (int, error) {
				if bytes.Count(log.Bytes(), []byte("\n")) >= 20 {
					stop()
				}
				return log.Write(p)
			})
			if err := Run(runCtx, shop, RunOptions{Clients: 2, Seed: 1, FirstID: int64(len(acks)) + 1,
				Log: logged}); err != nil {
				t.Fatal(err)
			}
			stop()
			if err := shop.Close(); err != nil {
				t.Fatal(err)
			}
			if err := ReadAcks(&log, func(a Ack) { acks = append(acks, a) }); err != nil {
				t.Fatal(err)
			}
		}
		result, err := Check(ctx, kind, dirs, acks, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := result.OneInstant(0); err != nil {
			t.Error(err)
		}
		if result.Orders != len(acks) || result.Orders < 40 || result.LostOrders != 0 {
			t.Errorf("%d acknowledged, result %+v", len(acks), result)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestCheckFindsForgery damages the two databases in ways that Check has to tell apart.
func TestCheckFindsForgery(t *testing.T) {
	ctx := context.Background()
	dirs := testDirs(t)
	shop, err := openSQLite(ctx, dirs)
	if err != nil {
		t.Fatal(err)
	}
	for id := int64(1); id <= 5; id++ {
		if err := shop.Place(ctx, 0, Order{ID: id, Item: 1, Quantity: 2}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := shop.stock.db.ExecContext(ctx, `DELETE FROM movement WHERE order_id = 4`); err != nil {
		t.Fatal(err)
	}
	if err := shop.Close(); err != nil {
		t.Fatal(err)
	}
	result, err := Check(ctx, SQLite, dirs, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if result.OrdersWithoutStock != 1 || len(result.Damage) != 1 {
		t.Errorf("a removed movement: %+v", result)
	}

	path := filepath.Join(dirs.Sales, "sales.db")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(text); i++ {
		text[i] ^= 0xff
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if result, err := Check(ctx, SQLite, dirs, nil, time.Now()); err == nil && result.Intact() == nil {
		t.Errorf("a flipped page passed: %+v", result)
	}
}

// TestProcessKill kills a workload with its servers and opens what it left.
func TestProcessKill(t *testing.T) {
	testenv.RequireRoot(t)
	forEachKind(t, func(t *testing.T, kind Kind) {
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		defer cancel()
		dirs := testDirs(t)
		o := ProcessOptions{Kind: kind, Dirs: dirs, Clients: kind.DefaultClients(), Seed: 1, FirstID: 1}
		first := startProcess(t, o)
		if err := first.WaitFirst(ctx); err != nil {
			t.Fatal(err)
		}
		acks, err := first.Stop()
		if err != nil {
			t.Fatal(err)
		}
		o.FirstID = int64(len(acks)) + 1
		second := startProcess(t, o)
		if err := second.WaitFirst(ctx); err != nil {
			t.Fatal(err)
		}
		if err := second.Kill(); err != nil {
			t.Fatal(err)
		}
		more, err := second.Wait(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, more...)
		result, err := Check(ctx, kind, dirs, acks, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		// Nothing but the processes died, so nothing acknowledged may be missing.
		if err := result.OneInstant(o.Clients); err != nil || result.LostOrders != 0 {
			t.Errorf("%d acknowledged, %+v: %v", len(acks), result, err)
		}
	})
}

func startProcess(t *testing.T, o ProcessOptions) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := StartProcess(self, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill() // no more than ErrProcessDone after a regular end
		if _, err := p.Wait(time.Minute); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestProcessReportsWhyItFailed(t *testing.T) {
	testenv.RequireRoot(t)
	p := startProcess(t, ProcessOptions{Kind: SQLite, Dirs: Dirs{Stock: "/nonexistent/stock"}, Clients: 1})
	if err := p.WaitFirst(context.Background()); err == nil || !strings.Contains(err.Error(), "/nonexistent/stock") {
		t.Errorf("got %v", err)
	}
}
