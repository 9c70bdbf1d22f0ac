package site

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Unit is a file for systemd.
type Unit struct{ Name, Text string }

// unitName is the name of a unit of the site, such as slipstream-site-a-keeper.service.
func (c Config) unitName(part string) string { return "slipstream-" + c.Name + "-" + part + ".service" }

// Units are the site's units, in the order in which they start: keeper, replicator, driver, volumes. They stop in the
// other order. binDir has the programs.
//
// The keeper and the replicator are never stopped by each other: either of them keeps the volumes alive while the other
// one is away. The last unit unmounts all volumes at its stop, before the driver and the replicator go: what the kernel
// still has of a volume could not be written after that. Units of applications name it in After= and Requires=, and
// mount their volumes by a drop-in of it.
func (c Config) Units(binDir string) []Unit {
	path := func(program string) string { return filepath.Join(binDir, program) }
	service := func(part, what, after, body string) Unit {
		var b strings.Builder
		fmt.Fprintf(&b, "# Written by slipctl site init. Put changes into a drop-in: systemctl edit %s\n", c.unitName(part))
		fmt.Fprintf(&b, "[Unit]\nDescription=Slipstream %s of %s\n", what, c.Name)
		fmt.Fprintf(&b, "RequiresMountsFor=%s\n", unitWords(c.directories()))
		if after != "" {
			fmt.Fprintf(&b, "Wants=%s\n", after)
		}
		fmt.Fprintf(&b, "After=%s\n", strings.TrimLeft(after+" network.target", " "))
		fmt.Fprintf(&b, "StartLimitIntervalSec=0\n\n[Service]\n%s\n[Install]\nWantedBy=multi-user.target\n", body)
		return Unit{c.unitName(part), b.String()}
	}
	process := func(program string, args []string, more string) string {
		return fmt.Sprintf("ExecStart=%s\nRestart=always\nRestartSec=500ms\n%s",
			unitWords(append([]string{path(program)}, args...)), more)
	}
	const keepFromOOM = "OOMScoreAdjust=-900\n"
	slipctl := unitWords([]string{path("slipctl")})
	environment := "Environment=" + unitWords([]string{"SLIPSTREAM_SIDECAR=" + c.SidecarEndpoint()}) + "\n"
	return []Unit{
		service("keeper", "keeper", "", process("keeper", c.KeeperArgs(), keepFromOOM)),
		service("replicator", "replicator", c.unitName("keeper"),
			process("replicator", c.ReplicatorArgs(), keepFromOOM)),
		service("driver", "CSI driver", c.unitName("replicator"), process("csi-driver", c.DriverArgs(), "")),
		service("volumes", "volumes", c.unitName("keeper")+" "+c.unitName("replicator")+" "+c.unitName("driver"),
			"Type=oneshot\nRemainAfterExit=yes\n"+environment+
				"ExecStart="+slipctl+" site wait --timeout 5m\n"+
				"ExecStop="+slipctl+" volume unmount --all\nTimeoutStopSec=5min\n"),
	}
}

// directories are those that have to be mounted before a process starts.
func (c Config) directories() []string {
	if c.JournalDir != "" {
		return []string{c.Dir, c.JournalDir}
	}
	return []string{c.Dir}
}

// unitWords writes words as systemd reads a command line.
func unitWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		w = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(w)
		if strings.ContainsAny(w, " \t'\";\\") || w == "" {
			w = `"` + w + `"`
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " ")
}

// WriteUnits writes the units into a directory that exists, such as /etc/systemd/system, and reports whether any file
// is new or different. systemctl daemon-reload has to follow then.
func WriteUnits(dir string, units []Unit) (changed bool, err error) {
	for _, u := range units {
		path := filepath.Join(dir, u.Name)
		before, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
		if err == nil && bytes.Equal(before, []byte(u.Text)) {
			continue
		}
		changed = true
		if err := os.WriteFile(path, []byte(u.Text), 0o644); err != nil {
			return changed, fmt.Errorf("unit of site: %w", err)
		}
	}
	return changed, nil
}
