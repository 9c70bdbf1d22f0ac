package main

import (
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

const fioJSON = `fio: a warning goes before the JSON
{"fio version": "fio-3.33", "jobs": [
 {"jobname": "device0", "error": 0,
  "read": {"iops": 0, "total_ios": 0},
  "write": {"iops": 100.5, "bw_bytes": 411648, "total_ios": 201, "clat_ns": {"percentile": {"99.000000": 5000}}},
  "sync": {"lat_ns": {"N": 200, "percentile": {"99.000000": 7000000}}}},
 {"jobname": "device1", "error": 0,
  "read": {"iops": 0, "total_ios": 0},
  "write": {"iops": 50, "bw_bytes": 204800, "total_ios": 100, "clat_ns": {"percentile": {"99.000000": 6000}}},
  "sync": {"lat_ns": {"N": 100, "percentile": {"99.000000": 3000000}}}}
]}`

func TestParseSysbench(t *testing.T) {
	s, err := parseSysbench([]byte(`SQL statistics:
    transactions:                        1234   (246.70 per sec.)
Latency (ms):
         min:                                    1.00
         99th percentile:                       12.50
`))
	if err != nil || s.operations != 1234 || s.value != 246.70 || s.p99 != 12500*time.Microsecond {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := parseSysbench([]byte("FATAL: unable to connect")); err == nil {
		t.Error("an error of sysbench was taken for a result")
	}
}

func TestParseFio(t *testing.T) {
	for _, test := range []struct {
		name string
		load fioLoad
		want sample
	}{
		{"flushes", fioLoad{pattern: "randwrite", blockSize: 4096, depth: 1, flushEvery: 1},
			sample{value: 150.5, operations: 301, bytes: 301 * 4096, flushes: 300, p99: 7 * time.Millisecond}},
		{"no flushes", fioLoad{pattern: "randwrite", blockSize: 4096, depth: 1},
			sample{value: 150.5, operations: 301, bytes: 301 * 4096, p99: 6 * time.Microsecond}},
		{"bandwidth", fioLoad{pattern: "write", blockSize: 256 << 10, depth: 1},
			sample{value: (411648 + 204800) / float64(1<<20), operations: 301, bytes: 301 * 256 << 10,
				p99: 6 * time.Microsecond}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseFio([]byte(fioJSON), test.load)
			if err != nil {
				t.Fatal(err)
			}
			if got.value != test.want.value || got.operations != test.want.operations || got.bytes != test.want.bytes ||
				got.flushes != test.want.flushes || got.p99 != test.want.p99 {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
	load := fioLoad{pattern: "randwrite", blockSize: 4096}
	for name, text := range map[string]string{
		"empty": "", "no job": "{}", "cut": fioJSON[:200],
		"failed": strings.Replace(fioJSON, `"error": 0`, `"error": 5`, 1),
		"idle":   strings.Replace(fioJSON, `"total_ios": 201`, `"total_ios": 0`, 1),
	} {
		if s, err := parseFio([]byte(text), load); err == nil {
			t.Errorf("%s: no error, but %+v", name, s)
		}
	}
	// A job that reads is not judged by its writes.
	if s, err := parseFio([]byte(fioJSON), fioLoad{pattern: "randread", blockSize: 4096}); err == nil {
		t.Errorf("a read load without reads: %+v", s)
	}
}

func TestParsePgbench(t *testing.T) {
	const out = `pgbench (15.8)
transaction type: <builtin: TPC-B (sort of)>
number of transactions actually processed: 1234
number of failed transactions: 0 (0.000%)
latency average = 1.6 ms
initial connection time = 3.1 ms
tps = 617.25 (without initial connection time)
`
	s, err := parsePgbench([]byte(out))
	if err != nil || s.value != 617.25 || s.operations != 1234 {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := parsePgbench([]byte("pgbench: error: connection refused")); err == nil {
		t.Error("no error without a result")
	}
}

func TestParseStat(t *testing.T) {
	u, err := parseStat(
		[]byte("cpu  100 1 50 1000 20 0 4 5 7 0\ncpu0 100 1 50 1000 20 0 4 5 7 0\nintr 5 1\nctxt 987654\n"))
	// Idle and waiting for I/O are left out, stolen time, and guest time, which user time has in it.
	if err != nil || u.CPU != 155*10*time.Millisecond || u.Switches != 987654 {
		t.Errorf("got %+v, %v", u, err)
	}
	for _, text := range []string{"", "ctxt 5\n", "cpu x\n", "cpu 1\nctxt x\n"} {
		if u, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q: no error, but %+v", text, u)
		}
	}
}

func TestParseStrace(t *testing.T) {
	counts, err := parseStrace([]byte(`% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.79    0.312462         108      2886       143 futex
 20.01    0.101203          51      1981           read
------ ----------- ----------- --------- --------- ----------------
100.00    0.505662          79      4867       143 total
`))
	if err != nil || len(counts) != 2 || counts["futex"] != 2886 || counts["read"] != 1981 {
		t.Errorf("got %v, %v", counts, err)
	}
	if counts, err := parseStrace([]byte("strace: attach: Operation not permitted\n")); err == nil {
		t.Errorf("no error, but %v", counts)
	}
	k := calls{Name: "load", Site: "primary", PerOp: map[string]float64{"read": 1, "futex": 2, "madvise": 0.01}}
	if got := k.cells(); got[2] != "3.01" || got[3] != "futex 2.00, read 1.00" {
		t.Errorf("cells: %q", got)
	}
}

// TestOwnUsage reads the real files of this process.
func TestOwnUsage(t *testing.T) {
	m, err := startMeter([]int{os.Getpid()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const reads = 1000
	for range reads {
		if _, err := f.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	machine, here, there, err := m.stop()
	if err != nil {
		t.Fatal(err)
	}
	if here.Reads < reads || there != (usage{}) || machine.Switches < 0 {
		t.Errorf("machine %+v, here %+v, there %+v after %d reads", machine, here, there, reads)
	}
	now, peak, err := residentBytes(os.Getpid())
	if err != nil || now < 1<<20 || peak < now/2 {
		t.Errorf("resident %v, peak %v, %v", now, peak, err)
	}
	if _, err := startMeter(nil, []int{math.MaxInt32}); err == nil {
		t.Error("no error for a process that is not there")
	}
}
