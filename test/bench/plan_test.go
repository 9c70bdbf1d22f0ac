package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func testSelection(t *testing.T, only string) (*env, selection) {
	t.Helper()
	all := regexp.MustCompile("")
	e := &env{wantedVariants: all}
	e.full()
	return e, selection{stages: regexp.MustCompile(only), loads: all, settings: all}
}

// TestTargets: the loads that the product is judged by are measured in both settings, with these targets.
func TestTargets(t *testing.T) {
	type targets struct{ one, two, off float64 }
	e, _ := testSelection(t, "")
	want := map[string]targets{
		"pgbench, 1 client":  {1, 1, 0.97},
		"pgbench, 8 clients": {0.85, 0.95, 0.97},
		"two PostgreSQL servers on two volumes of one group, pgbench with 4 clients each":           {0.85, 0.95, 0.97},
		"fio 4 KiB random write, fsync each, depth 1":                                               {1, 1.05, 0.97},
		"fio 4 KiB random write, fsync each, depth 8":                                               {1.1, 1.1, 0.97},
		"8 volumes in one group, 4 KiB random write with fsync each on all of them, total":          {0.85, 1, 0.97},
		"growth: 64 volumes in 1 groups, 4 KiB random write with fsync each on all of them, total":  {0.6, 0.8, 0.97},
		"growth: 64 volumes in 64 groups, 4 KiB random write with fsync each on all of them, total": {0.5, 0.6, 0.97},
		"ext4: copy of 1 GiB and fsync":                                                             {0.4, 0.7, 0.97},
		"ext4: untar of 20 000 small files and sync":                                                {0.9, 0.95, 0.97},
		"ext4: 4 KiB random read of a cached file, depth 1":                                         {1, 1, 0.97},
		"ext4: 4 KiB random read of a file that is not cached, depth 1":                             {0.9, 0.9, 0.97},
		"ext4: 4 KiB random read of a file that is not cached, depth 16":                            {0.9, 0.9, 0.97},
		"fio 4 KiB random write, no flush, depth 1":                                                 {0.7, 0.8, 0.97},
		"fio 4 KiB random write, no flush, depth 16":                                                {0.7, 0.8, 0.97},
		"SQLite, synchronous=FULL, 1 client":                                                        {0.9, 0.95, 0.97},
		"MariaDB, sysbench oltp_write_only, 1 client":                                               {0.9, 0.95, 0.97},
		"MariaDB, sysbench oltp_write_only, 8 clients":                                              {0.9, 0.95, 0.97},
	}
	have := map[string]*targets{}
	for _, s := range e.stages() {
		for _, c := range s.comparisons {
			if have[c.name] == nil {
				have[c.name] = &targets{off: c.targets[off]}
			}
			if s.setting == twoHosts {
				have[c.name].two = c.targets[replicated]
			} else {
				have[c.name].one = c.targets[replicated]
			}
			if slowest := map[setting]float64{oneMachine: 1.5, twoHosts: 1.2}[s.setting]; strings.Contains(c.name,
				", fsync each, depth") && c.slowest != slowest {
				t.Errorf("%s, %s: p99 %v", c.name, s.setting, c.slowest)
			}
		}
	}
	for name, w := range want {
		if h := have[name]; h == nil || *h != w {
			t.Errorf("%s: %+v, want %+v", name, h, w)
		}
	}
}

// TestSelection: a name of a stage selects its loads, a name of a load that load, in both settings.
func TestSelection(t *testing.T) {
	for only, want := range map[string][2]int{"^pgbench, 8": {2, 1}, "^PostgreSQL$": {2, 3}, "^failover$": {1, 1}} {
		e, sel := testSelection(t, only)
		steps := e.steps(sel, nil)
		if len(steps) != want[0] || steps[0].loads != want[1] || steps[0].takes < 10*time.Second {
			t.Errorf("%s: %+v", only, steps)
		}
	}
	e, sel := testSelection(t, "no such row")
	if steps := e.steps(sel, nil); len(steps) != 0 {
		t.Errorf("%+v", steps)
	}
}

// TestFit: a run that has to be shorter has fewer rounds first, then shorter measurements, and never fewer than enough.
func TestFit(t *testing.T) {
	e, sel := testSelection(t, "")
	whole := together(e.steps(sel, nil))
	if whole < time.Hour || whole > 6*time.Hour {
		t.Errorf("all of it takes %v", whole)
	}
	if err := e.fit(whole-time.Minute, sel); err != nil || e.rounds != 4 || e.cell != 5*time.Second {
		t.Errorf("%v, %d rounds of %v", err, e.rounds, e.cell)
	}
	if err := e.fit(time.Minute, sel); err == nil || e.rounds != leastRounds || e.cell != leastCell {
		t.Errorf("%v, %d rounds of %v", err, e.rounds, e.cell)
	}
	var plan bytes.Buffer
	if err := e.writePlan(&plan, e.steps(sel, nil)); err != nil || !strings.Contains(plan.String(), "Together about ") ||
		!strings.Contains(plan.String(), "memory") {
		t.Errorf("%v\n%s", err, &plan)
	}
}

// TestPublish: the documents get the results between the comments, and the rest of them stays as it is.
func TestPublish(t *testing.T) {
	dir := t.TempDir()
	documents := []string{"README.md", "docs/performance.md", "docs/design/performance-notes.md"}
	if err := os.MkdirAll(filepath.Join(dir, "docs/design"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range documents {
		repository, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), repository, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := publishResults(dir, dir); err == nil {
		t.Error("published nothing")
	}
	results := &results{Machine: "a machine"}
	for _, s := range []setting{oneMachine, twoHosts} {
		p := (&env{commit: "abc", mode: "bench"}).newPiece("load")
		p.Setting = s
		p.fill(testComparison())
		results.take(p.end())
	}
	p := (&env{commit: "def", mode: "bench"}).newPiece("lag")
	p.Rows = []row{measured("RPO", []float64{10}, "ms", 20, "")}
	results.take(p.end())
	if _, err := results.writeFiles(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := publishResults(dir, dir); err != nil {
			t.Fatal(err)
		}
	}
	const load = "| load | 1.00 (0.50 .. 2.00) | 0.95 met | 1.00 (0.50 .. 2.00) | 0.95 met |"
	for name, want := range map[string][]string{
		"README.md": {load, "at commit abc, def", "3 of 5"},
		"docs/performance.md": {load, "| load (replication off) |",
			"| RPO | 10.0 (10.0 .. 10.0) | ≤ 20.0 ms met | - | - | ms |"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if strings.Count(string(text), line) != 1 {
				t.Errorf("%s has %q %d times:\n%s", name, line, strings.Count(string(text), line), text)
			}
		}
		repository, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		before, rest, _ := strings.Cut(string(repository), publishBegin)
		_, after, _ := strings.Cut(rest, publishEnd)
		if !strings.HasPrefix(string(text), before+publishBegin) || !strings.HasSuffix(string(text), publishEnd+after) {
			t.Errorf("%s has changed beside the results", name)
		}
	}
}
