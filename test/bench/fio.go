package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fioLoad is one fio job on the raw device of a bed. Direct I/O keeps the device's own page cache out of it, for which
// a file system above would have its own rules; what is below the loop device is what is compared.
type fioLoad struct {
	// pattern is fio's rw: randwrite, randread or write.
	pattern   string
	blockSize int
	// depth is how many requests are under way on each device.
	depth int
	// jobs make the depth out of processes with one synchronous request each. It is how a depth with a flush after each
	// write is made: fio's fsync waits for everything before it, so one process has never more than one request then.
	jobs bool
	// flushEvery is the number of writes between flushes; 0 is none.
	flushEvery int
}

func (l fioLoad) unit() string {
	if l.blockSize >= 64<<10 {
		return "MiB/s"
	}
	return "IOPS"
}

func (l fioLoad) arguments(devices []string, sizeBytes int64, d time.Duration, seed uint64) []string {
	common := []string{
		"--output-format=json", "--thread", "--group_reporting", "--direct=1", "--rw=" + l.pattern,
		"--bs=" + strconv.Itoa(l.blockSize),
		"--size=" + strconv.FormatInt(sizeBytes, 10), "--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()),
		// The same blocks for every variant of a round; with refills, or compression would look better than it is.
		"--norandommap", "--randseed=" + strconv.FormatUint(seed, 10), "--refill_buffers",
		"--fsync=" + strconv.Itoa(l.flushEvery),
	}
	if l.jobs {
		common = append(common, "--ioengine=psync", "--numjobs="+strconv.Itoa(l.depth))
	} else {
		common = append(common, "--ioengine=libaio", "--iodepth="+strconv.Itoa(l.depth))
	}
	for i, device := range devices {
		common = append(common, fmt.Sprintf("--name=device%d", i), "--filename="+device)
	}
	return common
}

// prepare has nothing to do: the devices were written in full when they were made.
func (fioLoad) prepare(context.Context, *bed) error { return nil }

// run measures. It returns when fio has ended, which is after the flush that is under way.
func (l fioLoad) run(ctx context.Context, b *bed, d time.Duration, round int) (sample, error) {
	args := l.arguments(b.devices, b.sizeBytes, d, uint64(round)+1)
	out, err := run(ctx, "fio", args...)
	if err != nil {
		return sample{}, err
	}
	return parseFio(out, l)
}

// fioOutput is what is used of fio's JSON.
type fioOutput struct {
	Jobs []struct {
		Error int      `json:"error"`
		Read  *fioSide `json:"read"`
		Write *fioSide `json:"write"`
		Sync  struct {
			Latency fioLatency `json:"lat_ns"`
		} `json:"sync"`
	} `json:"jobs"`
}

type fioSide struct {
	IOPS      float64    `json:"iops"`
	Bandwidth float64    `json:"bw_bytes"`
	Total     float64    `json:"total_ios"`
	Latency   fioLatency `json:"clat_ns"`
}

type fioLatency struct {
	Count       float64            `json:"N"`
	Percentiles map[string]float64 `json:"percentile"`
}

func (l fioLatency) p99() time.Duration { return time.Duration(l.Percentiles["99.000000"]) }

// parseFio reads fio's JSON, which can have warnings before it.
func parseFio(text []byte, l fioLoad) (sample, error) {
	begin := bytes.IndexByte(text, '{')
	if begin < 0 {
		return sample{}, fmt.Errorf("fio printed no JSON: %q", text)
	}
	var o fioOutput
	if err := json.Unmarshal(text[begin:], &o); err != nil {
		return sample{}, fmt.Errorf("fio's output: %w", err)
	}
	if len(o.Jobs) == 0 {
		return sample{}, fmt.Errorf("fio ran no job: %q", text)
	}
	var s sample
	for _, job := range o.Jobs {
		if job.Error != 0 {
			return sample{}, fmt.Errorf("fio failed: %w", syscall.Errno(job.Error))
		}
		side := job.Write
		if strings.Contains(l.pattern, "read") {
			side = job.Read
		}
		if side == nil || side.Total == 0 {
			return sample{}, fmt.Errorf("fio did no I/O: %q", text)
		}
		if l.unit() == "IOPS" {
			s.value += side.IOPS
		} else {
			s.value += side.Bandwidth / (1 << 20)
		}
		s.operations += side.Total
		s.bytes += side.Total * float64(l.blockSize)
		latency := side.Latency
		if l.flushEvery > 0 {
			s.flushes += job.Sync.Latency.Count
			latency = job.Sync.Latency
		}
		s.p99 = max(s.p99, latency.p99())
		if l.flushEvery == 1 {
			s.p99 = max(s.p99, side.Latency.p99()) // a write that is durable when it is answered waits instead of the flush
		}
	}
	return s, nil
}

// run runs a program to its end, or to the context's, and returns its standard output. It is in a process group of its
// own, so that a Ctrl-C at the terminal reaches only the bench, which takes everything down in order.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	return runAs(ctx, nil, name, args...)
}

func runAs(ctx context.Context, credential *syscall.Credential, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: credential}
	cmd.Dir = "/"
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A child of the program that keeps the pipes open must not keep the bench.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}
