package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what a process, or the machine, has used so far, or between two points in time. Reads and writes are system
// calls that the kernel accounts as such (read, write, pread, writev and so on); others are not in it.
type usage struct {
	CPU      time.Duration
	Switches float64 // context switches of all threads
	Reads    float64
	Writes   float64
}

func (u usage) minus(v usage) usage {
	return usage{u.CPU - v.CPU, u.Switches - v.Switches, u.Reads - v.Reads, u.Writes - v.Writes}
}

func (u usage) plus(v usage) usage {
	return usage{u.CPU + v.CPU, u.Switches + v.Switches, u.Reads + v.Reads, u.Writes + v.Writes}
}

// tick is the unit of CPU times in /proc, USER_HZ, which is 100 on all Linux architectures that matter here.
const tick = 10 * time.Millisecond

// machineUsage is CPU time that was not idle and context switches, of everything on this machine.
func machineUsage() (usage, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return usage{}, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (usage, error) {
	var u usage
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "cpu":
			// user nice system idle iowait irq softirq; what follows is other machines' or in user already.
			for i, field := range fields[1:min(len(fields), 8)] {
				ticks, err := strconv.ParseInt(field, 10, 64)
				if err != nil {
					return usage{}, fmt.Errorf("/proc/stat: %w", err)
				}
				if i != 3 && i != 4 {
					u.CPU += time.Duration(ticks) * tick
				}
			}
		case "ctxt":
			n, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return usage{}, fmt.Errorf("/proc/stat: %w", err)
			}
			u.Switches = n
		}
	}
	if u.CPU == 0 {
		return usage{}, fmt.Errorf("/proc/stat has no line cpu")
	}
	return u, nil
}

// processUsage sums up the threads of a process. Switches of threads that have ended are not in it; a Go program hardly
// ends one.
func processUsage(pid int) (usage, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return usage{}, err
	}
	var u usage
	// The name in parentheses can hold anything; behind its end come the fields from the third on.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return usage{}, fmt.Errorf("%s/stat: %q", dir, text)
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("%s/stat: %w", dir, err)
		}
		u.CPU += time.Duration(ticks) * tick
	}
	statuses, err := filepath.Glob(filepath.Join(dir, "task/*/status"))
	if err != nil {
		return usage{}, err
	}
	for _, status := range statuses {
		text, err := os.ReadFile(status)
		if err != nil {
			continue // the thread has ended
		}
		u.Switches += field(text, "voluntary_ctxt_switches") + field(text, "nonvoluntary_ctxt_switches")
	}
	if text, err = os.ReadFile(filepath.Join(dir, "io")); err != nil {
		return usage{}, err
	}
	u.Reads, u.Writes = field(text, "syscr"), field(text, "syscw")
	return u, nil
}

// field is the number behind "name:" in a text of such lines; 0 if there is none.
func field(text []byte, name string) float64 {
	for line := range bytes.Lines(text) {
		key, value, ok := strings.Cut(string(line), ":")
		if ok && key == name {
			if words := strings.Fields(value); len(words) > 0 {
				n, _ := strconv.ParseFloat(words[0], 64)
				return n
			}
		}
	}
	return 0
}

// residentBytes is how much memory a process occupies, now and at most so far.
func residentBytes(pid int) (now, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	return field(text, "VmRSS") * 1024, field(text, "VmHWM") * 1024, nil
}

// meter reads what the machine and the processes of a bed use while a load runs.
type meter struct {
	herePids, therePids  []int
	machine, here, there usage
}

func startMeter(here, there []int) (*meter, error) {
	m := &meter{herePids: here, therePids: there}
	var err error
	m.machine, m.here, m.there, err = m.read()
	return m, err
}

func (m *meter) read() (machine, here, there usage, err error) {
	if machine, err = machineUsage(); err != nil {
		return
	}
	sum := func(pids []int) (total usage, err error) {
		for _, pid := range pids {
			u, err := processUsage(pid)
			if err != nil {
				return usage{}, err
			}
			total = total.plus(u)
		}
		return total, nil
	}
	if here, err = sum(m.herePids); err != nil {
		return
	}
	there, err = sum(m.therePids)
	return
}

// stop returns what was used since the start.
func (m *meter) stop() (machine, here, there usage, err error) {
	if machine, here, there, err = m.read(); err != nil {
		return
	}
	return machine.minus(m.machine), here.minus(m.here), there.minus(m.there), nil
}
