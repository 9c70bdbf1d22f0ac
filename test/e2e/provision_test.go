//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// provision makes volumes of each kind for a pod, writes to them, expands them in use, and looks at what the kubelet
// knows of them.
func (s *suite) provision(t *testing.T, shown func(string, ...any)) {
	claims := []string{"ext4", "xfs", "block", "replicable"}
	s.a.apply(t, claim("ext4", "plain", "Filesystem", "64Mi")+claim("xfs", "plain-xfs", "Filesystem", "512Mi")+
		claim("block", "plain", "Block", "32Mi")+claim("replicable", "replicable-xfs", "Filesystem", "512Mi")+
		pod{name: "first", claims: claims, command: `
			for v in ext4 xfs replicable; do echo payload > /$v/x; done
			echo payload | dd of=/block bs=512 conv=sync,fsync 2>/dev/null
			sync; trap exit TERM; while :; do sleep 1; done`}.manifest())
	s.a.phase(t, "pod", "first", "Running")
	eventually(t, "the pod has written", func() error {
		_, err := s.a.try("", "-n", namespace, "exec", "first", "--", "sh", "-ec",
			"grep -q payload /replicable/x && head -c 7 /block | grep -q payload")
		return err
	})
	node := field(s.a.get(t, "-n", namespace, "pod", "first").Spec, "nodeName")
	for _, c := range claims {
		pv := field(s.a.get(t, "-n", namespace, "pvc", c).Spec, "volumeName")
		affinity, err := json.Marshal(s.a.get(t, "pv", pv).Spec["nodeAffinity"])
		if err != nil || !strings.Contains(string(affinity), `"`+node+`"`) {
			t.Errorf("volume %s of claim %s is not bound to node %s: %s %v", pv, c, node, affinity, err)
		}
	}
	shown("claims ext4, xfs, raw block and replicable are bound on their pod's node and written to")

	sizes := map[string]string{"ext4": "128Mi", "xfs": "640Mi", "block": "64Mi", "replicable": "640Mi"}
	grown := claims
	if !s.canGrowExt4(t, node) {
		grown = claims[1:]
	}
	for _, c := range grown {
		s.a.run(t, "-n", namespace, "patch", "pvc", c, "-p", `{"spec":{"resources":{"requests":{"storage":"`+sizes[c]+`"}}}}`)
	}
	for _, c := range grown {
		eventually(t, "claim "+c+" has "+sizes[c], func() error {
			o := s.a.get(t, "-n", namespace, "pvc", c)
			if got := field(o.Status, "capacity", "storage"); got != sizes[c] {
				return fmt.Errorf("it has %s, conditions %v", got, o.Status["conditions"])
			}
			return nil
		})
	}
	if got := strings.TrimSpace(s.a.exec(t, "first", "blockdev --getsize64 /block")); got != "67108864" {
		t.Errorf("the pod sees %s bytes at its block device", got)
	}
	for _, v := range grown {
		if v == "block" {
			continue
		}
		var kib, want int
		if _, err := fmt.Sscan(s.a.exec(t, "first", "df -k /"+v+" | awk 'END {print $2}'"), &kib); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(sizes[v], "%dMi", &want); err != nil {
			t.Fatal(err)
		}
		if kib < want<<10*8/10 {
			t.Errorf("the file system at /%s has %d KiB of %s", v, kib, sizes[v])
		}
	}
	s.a.exec(t, "first", "for v in ext4 xfs replicable; do grep -q payload /$v/x; done")
	shown("expanded while in use, with their file systems: %s", strings.Join(grown, ", "))

	eventually(t, "the kubelet has the volumes' statistics", func() error {
		out, err := s.a.try("", "get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Pods []struct {
				Volume []struct {
					PVCRef        struct{ Name string }
					CapacityBytes uint64
				} `json:"volume"`
			}
		}
		if err := json.Unmarshal([]byte(out), &summary); err != nil {
			return err
		}
		has := map[string]uint64{}
		for _, p := range summary.Pods {
			for _, v := range p.Volume {
				has[v.PVCRef.Name] = v.CapacityBytes
			}
		}
		for _, c := range claims {
			if has[c] == 0 {
				return fmt.Errorf("claim %s is not among %v", c, has)
			}
		}
		return nil
	})
	shown("the kubelet reports their use")
	s.a.remove(t, []string{"first"}, claims)
	shown("deleted with their claims")
}

// canGrowExt4 says whether programs on a node may grow a mounted ext4, for which the kernel wants CAP_SYS_RESOURCE.
// Some virtual machines do not have it to give.
func (s *suite) canGrowExt4(t *testing.T, node string) bool {
	const sysResource = 24
	var set uint64
	if _, err := fmt.Sscanf(s.a.onNode(t, node, "grep", "CapBnd", "/proc/1/status"), "CapBnd: %x", &set); err != nil {
		t.Fatal(err)
	}
	return set&(1<<sysResource) != 0
}

// twoNodes makes claims of pods that have to be on a given node, asks for more than a node has, and drains one.
func (s *suite) twoNodes(t *testing.T, shown func(string, ...any)) {
	nodes := s.nodes("a")
	if len(nodes) < 2 {
		shown("nothing: the site has one node")
		t.SkipNow()
	}
	var manifest strings.Builder
	for i, node := range nodes {
		name := fmt.Sprintf("on-%d", i)
		manifest.WriteString(claim(name, "plain", "Filesystem", "32Mi") + pod{name: name, claims: []string{name}, node: node,
			command: "trap exit TERM; while :; do sleep 1; done"}.manifest())
	}
	// Nowhere is room for this: the scheduler has to see that from the capacity objects.
	manifest.WriteString(claim("huge", "plain", "Filesystem",
		"100Ti") + pod{name: "huge", claims: []string{"huge"}, command: "true"}.manifest())
	s.a.apply(t, manifest.String())
	for i, node := range nodes {
		name := fmt.Sprintf("on-%d", i)
		s.a.phase(t, "pod", name, "Running")
		if got := field(s.a.get(t, "-n", namespace, "pod", name).Spec, "nodeName"); got != node {
			t.Errorf("pod %s is on %s", name, got)
		}
	}
	shown("claims land on the node of their pod, on both nodes")
	eventually(t, "the scheduler says that there is no room", func() error {
		if e := s.a.events("huge"); !strings.Contains(e, "did not have enough free storage") {
			return fmt.Errorf("it says%s", e)
		}
		return nil
	})
	shown("a claim of 100Ti is not scheduled, because there is no free storage")

	// A drained node's pod is bound to it by its volume.
	victim := nodes[1]
	s.a.run(t, "cordon", victim)
	defer s.a.run(t, "uncordon", victim)
	s.a.run(t, "-n", namespace, "delete", "pod", "on-1")
	s.a.apply(t,
		pod{name: "on-1", claims: []string{"on-1"}, command: "trap exit TERM; while :; do sleep 1; done"}.manifest())
	eventually(t, "the pod waits for its node and says why", func() error {
		if e := s.a.events("on-1"); !strings.Contains(e, "node affinity") && !strings.Contains(e, "unschedulable") {
			return fmt.Errorf("it says%s", e)
		}
		return nil
	})
	s.a.run(t, "uncordon", victim)
	s.a.phase(t, "pod", "on-1", "Running")
	shown("a drained node's pod waits for its node, and starts when it is back")
	s.a.remove(t, []string{"on-0", "on-1", "huge"}, []string{"on-0", "on-1", "huge"})
}
