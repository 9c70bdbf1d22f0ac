package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// splitEnv makes the test binary a bench that has split the machine: with the file named there as the mask.
const splitEnv = "BENCH_TEST_SPLIT"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == guardArgument {
		if err := runGuard(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(splitEnv); path != "" {
		g, err := guardFile(path)
		if err == nil {
			err = g.set("1")
		}
		fmt.Println("set:", err)
		select {}
	}
	os.Exit(m.Run())
}

// maskFiles are a file and, as root, the kernel's.
func maskFiles(t *testing.T) []string {
	file := filepath.Join(t.TempDir(), "cpumask")
	if err := os.WriteFile(file, []byte("3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(workqueueMask); err != nil || os.Geteuid() != 0 {
		return []string{file}
	}
	return []string{file, workqueueMask}
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestGuardAfterKill: the mask is put back when the bench is killed, with its process group.
func TestGuardAfterKill(t *testing.T) {
	for _, path := range maskFiles(t) {
		before := content(t, path)
		bench := exec.Command("/proc/self/exe")
		bench.Env = append(os.Environ(), splitEnv+"="+path)
		bench.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := bench.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := bench.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "set: <nil>\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if now := content(t, path); now != "1" {
			t.Errorf("%s is %s while the bench runs", path, now)
		}
		if err := syscall.Kill(-bench.Process.Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = bench.Wait() // it was killed
		for end := time.Now().Add(20 * time.Second); content(t, path) != before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s stays %s, want %s", path, content(t, path), before)
			}
		}
	}
}

// TestGuardInOrder: end puts the mask back.
func TestGuardInOrder(t *testing.T) {
	for _, path := range maskFiles(t) {
		before := content(t, path)
		g, err := guardFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.set("1"); err != nil {
			t.Fatal(err)
		}
		if err := g.end(); err != nil || content(t, path) != before {
			t.Errorf("%s is %s, want %s: %v", path, content(t, path), before, err)
		}
	}
}

// TestSplitMachine: while the machine is split, what is started runs on the first processor; afterwards on all.
func TestSplitMachine(t *testing.T) {
	testenv.RequireRoot(t)
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil || before.Count() < 2 {
		t.Skip("one processor")
	}
	processors := func() string {
		out, err := exec.Command("grep", "Cpus_allowed_list", "/proc/self/status").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))[1]
	}
	all := processors()
	s, err := splitMachine()
	if err != nil {
		t.Fatal(err)
	}
	split := processors()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	if now := processors(); split != "0" || now != all {
		t.Errorf("processors %s, split %s, afterwards %s", all, split, now)
	}
}
