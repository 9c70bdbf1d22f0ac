package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// calls is how many system calls a process made per operation of a load, by name.
type calls struct {
	Name       string             `json:"name"`
	Site       string             `json:"site"`
	Operations float64            `json:"operations"`
	PerOp      map[string]float64 `json:"per_operation"`
}

// measureCalls counts the system calls of both replicators with strace. It slows them down several times, so the counts
// are of a slower run: what is shared by requests that come at the same time, as a flush is, can be shared by more or
// fewer.
func (e *env) measureCalls(ctx context.Context, p *piece) error {
	e.say("system calls")
	return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		beds, err := e.beds(ctx, pair, bedOptions{name: "calls", volumes: 1, sizeBytes: e.deviceBytes}, replicated)
		if err != nil {
			return err
		}
		b := beds[0]
		for _, c := range e.fioStage().comparisons {
			for _, traced := range []struct {
				site string
				pid  int
			}{{"primary", b.here[0]}, {"secondary", b.there[0]}} {
				counts, s, err := e.trace(ctx, traced.pid, b, c.load)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, traced.site, err)
				}
				k := calls{Name: c.name, Site: traced.site, Operations: s.operations, PerOp: map[string]float64{}}
				for name, n := range counts {
					k.PerOp[name] = n / s.operations
				}
				p.Calls = append(p.Calls, k)
			}
		}
		return nil
	})
}

// trace runs a load on a bed while strace counts what a process does.
func (e *env) trace(ctx context.Context, pid int, b *bed, l load) (_ map[string]float64, s sample, err error) {
	if err := errors.Join(l.prepare(ctx, b), b.settle(ctx)); err != nil {
		return nil, sample{}, err
	}
	dir, err := os.MkdirTemp(e.tempDir, "slipstream-strace-")
	if err != nil {
		return nil, sample{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out := filepath.Join(dir, "counts")
	cmd := exec.Command("strace", "-c", "-f", "-q", "-o", out, "-p", strconv.Itoa(pid))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, sample{}, fmt.Errorf("%w: run hack/deps.sh bench", err)
	}
	attachErr := waitTraced(ctx, pid)
	if attachErr == nil {
		s, attachErr = l.run(ctx, b, e.cell, 0)
	}
	// strace detaches and writes its table at an interrupt; then it ends by the same signal.
	signalErr := cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err != nil && attachErr == nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) ||
			exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT && exit.ExitCode() != 128+int(syscall.SIGINT) {
			return nil, sample{}, fmt.Errorf("strace: %w: %s", err, stderr.Bytes())
		}
	}
	if err := errors.Join(attachErr, signalErr, b.settle(ctx)); err != nil {
		return nil, sample{}, err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return nil, sample{}, err
	}
	counts, err := parseStrace(text)
	return counts, s, err
}

// waitTraced waits until every thread of a process is traced.
func waitTraced(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		statuses, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			return err
		}
		traced := len(statuses) > 0
		for _, status := range statuses {
			text, err := os.ReadFile(status)
			traced = traced && (err != nil || field(text, "TracerPid") != 0)
		}
		if traced {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("strace does not get hold of process %d: %w", pid, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// parseStrace reads the table of strace -c: % time, seconds, microseconds per call, calls, errors if there were any,
// name.
func parseStrace(text []byte) (map[string]float64, error) {
	counts := map[string]float64{}
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) < 5 || fields[len(fields)-1] == "total" {
			continue
		}
		if _, err := strconv.ParseFloat(fields[0], 64); err != nil {
			continue // heading and rules
		}
		n, err := strconv.ParseFloat(fields[3], 64)
		if err != nil {
			return nil, fmt.Errorf("strace's table: %q: %w", line, err)
		}
		counts[fields[len(fields)-1]] += n
	}
	if len(counts) == 0 {
		return nil, fmt.Errorf("strace counted nothing: %q", text)
	}
	return counts, nil
}

var callsHeader = []string{"load", "replicator of the", "system calls", "of these"}

// cells names the calls that are more than one in twenty operations.
func (k calls) cells() []string {
	var names []string
	var total float64
	for name, n := range k.PerOp {
		total += n
		if n >= 0.05 {
			names = append(names, name)
		}
	}
	sort.Slice(names, func(i, j int) bool { return k.PerOp[names[i]] > k.PerOp[names[j]] })
	var parts []string
	for _, name := range names {
		parts = append(parts, name+" "+figure(k.PerOp[name]))
	}
	if len(parts) == 0 {
		parts = []string{"-"}
	}
	return []string{k.Name, k.Site, figure(total), strings.Join(parts, ", ")}
}
