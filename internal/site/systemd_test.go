package site

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func unitsOf(t *testing.T, c Config, bin string) map[string]string {
	t.Helper()
	units := map[string]string{}
	for _, u := range c.Units(bin) {
		units[u.Name] = u.Text
	}
	return units
}

// Each unit starts behind those that it needs, so it stops before them.
func TestUnitsAreInOrder(t *testing.T) {
	c := Config{Dir: "/srv/slip stream", Name: "site-a", NodeID: "n1", Listen: ":9443", JournalDir: "/journal"}
	units := unitsOf(t, c, "/usr/local/bin")
	for unit, after := range map[string][]string{
		"keeper": nil, "replicator": {"keeper"}, "driver": {"replicator"},
		"volumes": {"keeper", "replicator", "driver"},
	} {
		text := units["slipstream-site-a-"+unit+".service"]
		for _, other := range after {
			if !slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
				return strings.HasPrefix(line, "After=") && strings.Contains(line, "slipstream-site-a-"+other+".service")
			}) {
				t.Errorf("%s does not start after the %s:\n%s", unit, other, text)
			}
		}
		for _, line := range []string{"WantedBy=multi-user.target", `RequiresMountsFor="/srv/slip stream" /journal`} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("%s has no %s:\n%s", unit, line, text)
			}
		}
		if strings.Contains(text, "PartOf=") || strings.Contains(text, "Requires=") || strings.Contains(text, "BindsTo=") {
			t.Errorf("%s is stopped with another unit:\n%s", unit, text)
		}
	}
	if want := `ExecStart=/usr/local/bin/keeper --socket "/srv/slip stream/run/keeper.sock"`; !strings.Contains(
		units["slipstream-site-a-keeper.service"], want+"\n") {
		t.Errorf("no line %s", want)
	}
}

func TestUnitWords(t *testing.T) {
	for word, want := range map[string]string{
		"plain": "plain", "a b": `"a b"`, "50%": "50%%", "$HOME": "$$HOME", `a"b`: `"a\"b"`, "": `""`, `a\b`: `"a\\b"`,
	} {
		if got := unitWords([]string{word}); got != want {
			t.Errorf("%q is written as %s, want %s", word, got, want)
		}
	}
}

func TestWriteUnits(t *testing.T) {
	dir := t.TempDir()
	units := []Unit{{"a.service", "one"}, {"b.service", "two"}}
	for _, step := range []struct {
		text string
		want bool
	}{{"one", true}, {"one", false}, {"other", true}} {
		units[0].Text = step.text
		if changed, err := WriteUnits(dir, units); err != nil || changed != step.want {
			t.Errorf("%s: changed %v, want %v, error %v", step.text, changed, step.want, err)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "a.service")); err != nil || string(text) != step.text {
			t.Errorf("the unit is %q, %v", text, err)
		}
	}
	if _, err := WriteUnits(filepath.Join(dir, "none"), units); err == nil {
		t.Error("a directory that does not exist was taken")
	}
}

// systemd itself reads the units without a complaint.
func TestUnitsAreValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	bin, dir := t.TempDir(), t.TempDir()
	for _, program := range []string{"keeper", "replicator", "csi-driver", "slipctl"} {
		if err := os.WriteFile(filepath.Join(bin, program), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := Config{Dir: "/srv/slipstream", Name: "site-a", NodeID: "n1", Listen: ":9443",
		Peers: []Peer{{"site-b", "10.0.0.2:9443"}}}
	units := c.Units(bin)
	if _, err := WriteUnits(dir, units); err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "--man=no"}
	for _, u := range units {
		args = append(args, filepath.Join(dir, u.Name))
	}
	verify := exec.Command(analyze, args...)
	verify.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := verify.CombinedOutput()
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, "slipstream-site-a") {
			t.Error(line)
		}
	}
	if err != nil {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
