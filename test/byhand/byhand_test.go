// Package byhand tests what a person does without Kubernetes: it runs the commands of README.md, section "Two sites by
// hand", as they stand there, with real programs. Both sites are on this machine, in a temporary directory; addresses
// and paths of the text are replaced by those of the test.
package byhand

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// binDir has the programs, for all tests. The first test that needs them builds them.
var (
	binDir = filepath.Join(os.TempDir(), fmt.Sprintf("handbin%d", os.Getpid()))
	build  = sync.OnceValue(func() error {
		return testsite.Build(context.Background(), binDir, "github.com/slipstream-storage/slipstream/cmd/slipctl")
	})
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := errors.Join(goleak.Find(), os.RemoveAll(binDir)); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// machines are the shells of the two machines, and what stands for the text's addresses and paths.
type machines struct {
	shells  map[string]*shell
	replace map[string]*strings.Replacer
}

const first, second = "first", "second"

func newMachines(t *testing.T) *machines {
	t.Helper()
	testenv.RequireFUSE(t)
	testenv.RequireLoop(t)
	for _, tool := range []string{"bash", "mkfs.ext4", "mkfs.xfs"} {
		testenv.RequireTool(t, tool)
	}
	dir, err := os.MkdirTemp("", "hand") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := testsite.Sweep(dir); err != nil {
			t.Error(err)
		}
	})
	if err := build(); err != nil {
		t.Fatal(err)
	}
	addresses, err := testsite.FreeAddresses(2)
	if err != nil {
		t.Fatal(err)
	}
	m := &machines{shells: map[string]*shell{}, replace: map[string]*strings.Replacer{}}
	for _, name := range []string{first, second} {
		root := filepath.Join(dir, name)
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		m.replace[name] = strings.NewReplacer("10.0.0.1:9443", addresses[0], "10.0.0.2:9443", addresses[1],
			"/srv/slipstream", root+"/s", "/mnt/", root+"/mnt/", "/root/authority", dir+"/authority", "/root/", root+"/")
		m.shells[name] = newShell(t, binDir, root)
	}
	return m
}

func (m *machines) must(machine, commands string) string {
	m.shells[machine].t.Helper()
	return m.shells[machine].must(m.replace[machine].Replace(commands))
}

var blocks = regexp.MustCompile("(?s)```sh\n# on the (first|second) machine\n(.*?)```")

func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Two sites by hand\n")
	if !ok {
		t.Fatal("README.md has no section \"Two sites by hand\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	found := blocks.FindAllStringSubmatch(section, -1)
	if n := strings.Count(section, "```sh"); len(found) != n || n < 5 {
		t.Fatalf("the section has %d blocks, of which %d begin with the machine", n, len(found))
	}
	m := newMachines(t)
	read := 0
	for _, block := range found {
		out := m.must(block[1], block[2])
		if strings.Contains(block[2], "cat /mnt/orders/list") {
			read++
			if !strings.Contains(out, "\norder 1\n") {
				t.Errorf("the order is not on the %s machine", block[1])
			}
		}
	}
	if read < 2 {
		t.Error("the section shows the data on fewer than two machines")
	}
}

// What a person can do wrong is refused, what is done already is said, and all is gone in the end.
func TestVolumesByHand(t *testing.T) {
	m := newMachines(t)
	m.must(first, "slipctl site init --dir /srv/slipstream --name site-a --listen 10.0.0.1:9443 > /root/start.sh\n"+
		". /root/start.sh")
	fails := func(status, commands, want string) {
		t.Helper()
		out, _ := m.shells[first].run(m.replace[first].Replace(commands) + "; [ $? = " + status + " ]")
		if !strings.Contains(out, want) {
			t.Errorf("%s:\n%s\nwant %q", commands, out, want)
		}
	}
	has := func(commands, want string) {
		t.Helper()
		if out := m.must(first, commands); !strings.Contains(out, want) {
			t.Errorf("%s does not print %q", commands, want)
		}
	}
	has("slipctl volume create data --size 320Mi --fs xfs", "volume data created, id vol-")
	has("slipctl volume create data --size 320Mi --fs xfs", "is there already")
	fails("1", "slipctl volume create data --size 384Mi --fs xfs", "choose another name")
	has("slipctl volume mount data /mnt/data", "volume data is on")
	has("slipctl volume mount data /mnt/data", "is on "+m.replace[first].Replace("/mnt/data")+" already")
	fails("4", "slipctl volume mount data /mnt/again", "`slipctl volume unmount data`")
	m.must(first, "echo text > /mnt/data/file; sync /mnt/data/file")
	fails("4", "slipctl volume delete data --yes", "`slipctl volume unmount data`")
	has("slipctl volume grow data 384Mi", "volume data has 384 MiB now")
	has("slipctl volume grow data 384Mi", "nothing changed")
	m.must(first, "[ $(df --output=size -BM /mnt/data | tail -1 | tr -dc 0-9) -gt 290 ]")
	has("slipctl volume unmount data", "volume data is unmounted")
	fails("3", "slipctl volume unmount data", "nothing was unmounted")
	has("slipctl volume grow data 448Mi", "volume data has 448 MiB now") // not mounted
	has("slipctl volume list", "448 MiB")
	has("slipctl volume mount data /mnt/data; cat /mnt/data/file", "text")
	m.must(first, "[ $(df --output=size -BM /mnt/data | tail -1 | tr -dc 0-9) -gt 350 ]")

	has("slipctl volume create raw --size 16Mi --fs block --plain", "volume raw created")
	m.must(first, "slipctl volume mount raw /mnt/raw; [ -b /mnt/raw ]")
	has("slipctl volume unmount --all", "volume raw is unmounted")
	m.must(first, "[ ! -e /mnt/raw ]; [ ! -e /mnt/data ]")
	has("slipctl group create shop", "group shop created")
	has("slipctl group add shop data", "there is no copy") // by name
	has("slipctl group remove shop data", "is not in group shop any more")
	has("slipctl volume delete data --yes", "volume data deleted")
	fails("3", "slipctl volume delete data --yes", "there is no volume")
	has("slipctl volume delete raw --yes", "volume raw deleted")
	m.must(first, `[ "$(slipctl volume list -o json)" = "[]" ]`)
}
