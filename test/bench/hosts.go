package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// setting is where the two sites run.
type setting string

const (
	// oneMachine: both sites have all processors and one disk.
	oneMachine setting = "one machine"
	// twoHosts: loads, the primary and the kernel's workers run on the first processor, the secondary on the second one
	// with its pool in memory. It is what a user with a second machine has.
	twoHosts setting = "two hosts"
)

const primaryProcessor, secondaryProcessor = 0, 1

// workqueueMask has the processors of the kernel's workers that are bound to none, those of loop devices and of
// writeback among them.
const workqueueMask = "/sys/devices/virtual/workqueue/cpumask"

// split is the machine while it stands for two hosts.
type split struct {
	before unix.CPUSet
	mask   *guardedFile
}

// splitMachine confines this process, and so whatever it starts, and the kernel's workers to the first processor.
func splitMachine() (*split, error) {
	s := &split{}
	if err := unix.SchedGetaffinity(0, &s.before); err != nil {
		return nil, fmt.Errorf("processors of the bench: %w", err)
	}
	if !s.before.IsSet(primaryProcessor) || !s.before.IsSet(secondaryProcessor) {
		return nil, errors.New("the setting of two hosts needs processors 0 and 1")
	}
	var err error
	if s.mask, err = guardFile(workqueueMask); err != nil {
		return nil, err
	}
	err = s.mask.set("1")
	if err == nil {
		err = confine(os.Getpid(), primaryProcessor)
	}
	if err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// end makes one machine of it again. Without the bench, the kernel and guardFile do that.
func (s *split) end() error {
	return errors.Join(setAffinity(os.Getpid(), &s.before), s.mask.end())
}

// confine lets a process run on one processor only.
func confine(pid, processor int) error {
	var set unix.CPUSet
	set.Set(processor)
	return setAffinity(pid, &set)
}

// setAffinity sets the processors of all threads of a process. Threads that they start later inherit them.
func setAffinity(pid int, set *unix.CPUSet) error {
	done := map[string]bool{}
	for again := true; again; {
		again = false
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range threads {
			if done[t.Name()] {
				continue
			}
			done[t.Name()], again = true, true
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("processors of thread %d: %w", tid, err)
			}
		}
	}
	return nil
}

// moveSecondary puts a site's pool into memory. Nothing of the site runs yet.
func moveSecondary(s *testsite.Site) error {
	pool := s.Config.PoolDir()
	if err := os.MkdirAll(pool, 0o755); err != nil {
		return err
	}
	// Unmounted with the pair.
	if err := unix.Mount("tmpfs", pool, "tmpfs", 0, "size=75%"); err != nil {
		return fmt.Errorf("mounting tmpfs on %s: %w", pool, err)
	}
	return nil
}

// confineSecondary confines a running site to the second processor.
func confineSecondary(s *testsite.Site) error {
	var errs []error
	for _, p := range []*testsite.Process{s.Keeper(), s.Driver(), s.Replicator()} {
		errs = append(errs, confine(p.Pid(), secondaryProcessor))
	}
	return errors.Join(errs...)
}

// guardedFile is a file whose content another process puts back when this one ends, however it ends.
type guardedFile struct {
	path, before string
	guard        *exec.Cmd
	alive        io.Closer
}

// guardArgument makes the program the guard of a file; see runGuard.
const guardArgument = "guard-file"

// guardFile starts the guard. The file is as it was until set.
func guardFile(path string) (_ *guardedFile, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	g := &guardedFile{path: path, before: strings.TrimSpace(string(text))}
	// Its own session: what ends this process group must not end it.
	g.guard = exec.Command("/proc/self/exe", guardArgument, path, g.before)
	g.guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.guard.Stderr = os.Stderr
	if g.alive, err = g.guard.StdinPipe(); err != nil {
		return nil, err
	}
	ready, err := g.guard.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := g.guard.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("the guard of %s did not start: %w", path, err), g.end())
	}
	return g, nil
}

func (g *guardedFile) set(text string) error { return os.WriteFile(g.path, []byte(text+"\n"), 0o644) }

// end has the content put back, and waits for it.
func (g *guardedFile) end() error { return errors.Join(g.alive.Close(), g.guard.Wait()) }

// runGuard is the guard's process: it waits until its standard input is closed, which the kernel does when the bench is
// gone, and then writes what the file had. No signal of a terminal or a service manager ends it before.
func runGuard(path, before string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(before+"\n"), 0o644); err != nil {
		return fmt.Errorf("%s has to be set to %s: %w", filepath.Base(path), before, err)
	}
	return nil
}
