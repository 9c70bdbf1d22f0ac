//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// inventory is what a node has of things that could be left behind, counted.
func (s *suite) inventory(t *testing.T, c cluster, node string) map[string]string {
	t.Helper()
	out := c.onNode(t, node, "sh", "-c", `
		pool=$(echo /var/lib/slipstream/pool-?)
		echo "loop devices: $(cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -c ^$pool)"
		echo "mounts: $(grep -cE " $pool/shim|kubernetes.io[~/]csi" /proc/mounts)"
		echo "images: $(ls $pool/volumes 2>/dev/null | wc -l)"
		echo "publications: $(ls $pool/publications 2>/dev/null | wc -l)"
		echo "groups: $(ls /var/lib/slipstream/journal/groups | wc -l)"
		echo "shims: $(ls $pool/shim 2>/dev/null | wc -l)"
		for p in /proc/[0-9]*; do
			case $(readlink $p/exe) in
			*/csi-driver|*/replicator|*/keeper) echo "descriptors of $(readlink $p/exe): $(ls $p/fd | wc -l)" ;;
			esac
		done`)
	counts := map[string]string{}
	for line := range strings.Lines(out) {
		if name, n, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			counts[name] = n
		}
	}
	counts["leases"] = strings.TrimSpace(fmt.Sprint(len(c.list(t, "-n", system, "leases"))))
	counts["volumes"] = fmt.Sprint(len(c.list(t, "pv")))
	return counts
}

// leaks makes, mounts and deletes volumes of each kind many times, and wants the node as it was.
func (s *suite) leaks(t *testing.T, shown func(string, ...any)) {
	cycles := 50
	if text := os.Getenv("SLIPSTREAM_E2E_CYCLES"); text != "" {
		var err error
		if cycles, err = strconv.Atoi(text); err != nil {
			t.Fatalf("SLIPSTREAM_E2E_CYCLES: %v", err)
		}
	}
	node := s.nodes("a")[len(s.nodes("a"))-1]
	// Several at a time, since most of a cycle is waiting for the kubelet.
	const most = 10
	cycle := func(width int) {
		var manifest strings.Builder
		var pods, claims []string
		for i := range width {
			c := []string{fmt.Sprintf("plain-%d", i), fmt.Sprintf("block-%d", i), fmt.Sprintf("replicable-%d", i)}[i%3]
			class, mode := "plain", "Filesystem"
			switch i % 3 {
			case 1:
				mode = "Block"
			case 2:
				class = "replicable"
			}
			name := fmt.Sprintf("cycle-%d", i)
			command := "date > /" + c + "/x"
			if mode == "Block" {
				command = "date | dd of=/" + c + " conv=fsync"
			}
			manifest.WriteString(claim(c, class, mode,
				"32Mi") + pod{name: name, claims: []string{c}, node: node, command: command}.manifest())
			pods, claims = append(pods, name), append(claims, c)
		}
		s.a.apply(t, manifest.String())
		for _, p := range pods {
			s.a.phase(t, "pod", p, "Succeeded")
		}
		s.a.remove(t, pods, claims)
	}
	cycle(most) // what comes into being once and stays
	before := s.inventory(t, s.a, node)
	done := 0
	for done < cycles {
		width := min(most, cycles-done)
		cycle(width)
		done += width
	}
	eventually(t, "the node is as it was", func() error {
		after := s.inventory(t, s.a, node)
		var differ []string
		for name, n := range before {
			b, _ := strconv.Atoi(n)
			a, _ := strconv.Atoi(after[name])
			// Descriptors come and go with connections; a leak of one a cycle is what this is after.
			slack := 0
			if strings.HasPrefix(name, "descriptors") {
				slack = 8
			}
			if a > b+slack || a < b && slack == 0 {
				differ = append(differ, fmt.Sprintf("%s: %d, then %d", name, b, a))
			}
		}
		if len(differ) > 0 {
			return fmt.Errorf("%s", strings.Join(differ, "; "))
		}
		return nil
	})
	shown(
		"%d create-mount-delete cycles of plain, block and replicable volumes leave loop devices, mounts, images, "+
			"publications, groups, shims, descriptors, leases and volumes as they were", done)
}
