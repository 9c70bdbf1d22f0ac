package byhand

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// blockTimeout bounds one block of commands.
const blockTimeout = 2 * time.Minute

// shell is a shell of root that stays open, as a person has it: what a block exports is there for the next one, and
// what it starts in the background runs on.
type shell struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	count int
}

// newShell starts a shell with the programs on its PATH. At the end of the test it ends the processes that the shell
// started, newest first, and then the shell.
func newShell(t *testing.T, binDir, dir string) *shell {
	t.Helper()
	s := &shell{t: t, cmd: exec.Command("bash", "--noprofile", "--norc"), lines: make(chan string)}
	s.cmd.Dir = dir
	s.cmd.Env = append(s.cmd.Environ(), "PATH="+binDir+":/usr/sbin:/usr/bin:/sbin:/bin", "SLIPSTREAM_SIDECAR=")
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = s.cmd.Stdout
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			s.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		// The driver first: the replicator and the keeper serve what it unmounts.
		s.run("slipctl volume unmount --all\nfor pid in $(jobs -p | sort -rn); do kill $pid; wait $pid; done; true")
		s.in.Close()
		for range s.lines {
		}
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("the shell: %v", err)
		}
	})
	return s
}

// run runs commands one after another up to the first that fails, and returns what they printed and whether all
// succeeded.
func (s *shell) run(commands string) (string, bool) {
	s.t.Helper()
	s.count++
	end := fmt.Sprintf("end of block %d:", s.count)
	// Each command is run by the shell itself, so that it can export and start something.
	script := &strings.Builder{}
	fmt.Fprintln(script, "failed=0")
	for _, command := range commandsOf(commands) {
		fmt.Fprintf(script, "if [ $failed = 0 ]; then\necho %s\n%s\nfailed=$?; fi\n", quote("$ "+command), command)
	}
	fmt.Fprintf(script, "echo; echo '%s' $failed\n", end)
	if _, err := io.WriteString(s.in, script.String()); err != nil {
		s.t.Fatal(err)
	}
	var output strings.Builder
	timeout := time.After(blockTimeout)
	for {
		select {
		case line, open := <-s.lines:
			if !open {
				s.t.Fatalf("the shell ended:\n%s", output.String())
			}
			if status, isEnd := strings.CutPrefix(line, end); isEnd {
				return output.String(), strings.TrimSpace(status) == "0"
			}
			output.WriteString(line + "\n")
		case <-timeout:
			s.t.Fatalf("after %v it still runs:\n%s\nIt printed:\n%s", blockTimeout, commands, output.String())
		}
	}
}

// must is run, and fails the test with what was printed.
func (s *shell) must(commands string) string {
	s.t.Helper()
	out, ok := s.run(commands)
	s.t.Log("\n" + out)
	if !ok {
		s.t.Fatal("a command failed; the last one above")
	}
	return out
}

// commandsOf splits a block into commands: one a line, or over several lines that end with a backslash. Comments are
// left out.
func commandsOf(block string) []string {
	var commands []string
	for _, line := range strings.Split(strings.ReplaceAll(block, "\\\n", " "), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commands = append(commands, line)
		}
	}
	return commands
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
