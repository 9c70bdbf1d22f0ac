//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

const toolbox = "slipstream.test/toolbox:1"

func claim(name, class, mode, size string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s, namespace: %s}
spec:
  storageClassName: %s
  volumeMode: %s
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: %s}}
`, name, namespace, class, mode, size)
}

// pod is a pod of the toolbox. Volumes are claims at /<claim>; a claim that begins with "block" is a device there.
type pod struct {
	name    string
	claims  []string
	node    string // where it has to be; empty for anywhere
	prefers string // where it is put if nothing is against it
	command string // for sh -c
	restart string // Never by default
}

func (p pod) manifest() string {
	var b strings.Builder
	restart := p.restart
	if restart == "" {
		restart = "Never"
	}
	fmt.Fprintf(&b,
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\nspec:\n  restartPolicy: %s\n  "+
			"terminationGracePeriodSeconds: 60\n",
		p.name, namespace, restart)
	if p.node != "" {
		fmt.Fprintf(&b, "  nodeSelector: {kubernetes.io/hostname: %s}\n", p.node)
	}
	if p.prefers != "" {
		fmt.Fprintf(&b,
			"  affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: "+
				"{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}}]}}\n", p.prefers)
	}
	fmt.Fprintf(&b,
		"  containers:\n  - name: c\n    image: %s\n    imagePullPolicy: Never\n    command: [sh, -c, %q]\n", toolbox,
		p.command)
	var mounts, devices, volumes []string
	for _, c := range p.claims {
		if strings.HasPrefix(c, "block") {
			devices = append(devices, fmt.Sprintf("{name: %s, devicePath: /%s}", c, c))
		} else {
			mounts = append(mounts, fmt.Sprintf("{name: %s, mountPath: /%s}", c, c))
		}
		volumes = append(volumes, fmt.Sprintf("{name: %s, persistentVolumeClaim: {claimName: %s}}", c, c))
	}
	for _, l := range []struct {
		indent, key string
		items       []string
	}{{"    ", "volumeMounts", mounts}, {"    ", "volumeDevices", devices}, {"  ", "volumes", volumes}} {
		if len(l.items) > 0 {
			fmt.Fprintf(&b, "%s%s: [%s]\n", l.indent, l.key, strings.Join(l.items, ", "))
		}
	}
	return b.String()
}

// exec runs a shell command in a pod.
func (c cluster) exec(t *testing.T, pod, command string) string {
	t.Helper()
	return c.run(t, "-n", namespace, "exec", pod, "--", "sh", "-ec", command)
}

// remove deletes pods and claims, and waits for their volumes to be gone.
func (c cluster) remove(t *testing.T, pods, claims []string) {
	t.Helper()
	var volumes []string
	for _, name := range claims {
		if v := field(c.get(t, "-n", namespace, "pvc", name).Spec, "volumeName"); v != "" {
			volumes = append(volumes, v)
		}
	}
	for _, name := range pods {
		c.run(t, "-n", namespace, "delete", "pod", name, "--ignore-not-found", "--wait=false")
	}
	for _, name := range claims {
		c.run(t, "-n", namespace, "delete", "pvc", name, "--wait=false")
	}
	for _, name := range pods {
		c.gone(t, "-n", namespace, "pod", name)
	}
	for _, name := range volumes {
		c.gone(t, "pv", name)
	}
}

// verifying starts the verifying load on a file or a device in a pod; see test/cluster/verify. Without a pause it takes
// all of a small machine, and what is waited for are the clusters' own programs.
func verifying(name string, claims ...string) pod {
	var parts []string
	for _, c := range claims {
		target := "/" + c
		if !strings.HasPrefix(c, "block") {
			target += "/blocks"
		}
		parts = append(parts, "verify --file "+target+" --size 16Mi --pause 20ms > /tmp/"+c+".log 2>&1 & P=\"$P $!\";")
	}
	// TERM goes to the loads, each of which then reads all it has written; the pod's exit status is theirs together. The
	// signal ends a wait, which is then begun again.
	script := `trap 'kill $P' TERM; ` + strings.Join(parts, " ") +
		` s=0; for p in $P; do wait $p; r=$?; [ $r -lt 128 ] || { wait $p; r=$?; }; [ $r = 0 ] || s=1; done; ` +
		`cat /tmp/*.log; exit $s`
	return pod{name: name, claims: claims, command: script}
}

// progress is how many writes the loads of a pod have done, at least; an error when one has failed.
func (c cluster) progress(t *testing.T, name string, claims ...string) int {
	t.Helper()
	least := -1
	for _, v := range claims {
		var out string
		// A kubelet that was just started does not know its pods yet.
		eventually(t, "pod "+name+" can be asked", func() (err error) {
			out, err = c.try("", "-n", namespace, "exec", name, "--", "tail", "-n", "1", "/tmp/"+v+".log")
			return err
		})
		var writes int
		if strings.Contains(out, "FAILED") {
			t.Fatalf("load of pod %s on %s: %s", name, v, out)
		}
		if _, err := fmt.Sscanf(out, "writes=%d", &writes); err != nil && out != "" {
			t.Fatalf("load of pod %s on %s printed %q", name, v, out)
		}
		if least < 0 || writes < least {
			least = writes
		}
	}
	return least
}

// goesOn waits until every load of a pod has written after now.
func (c cluster) goesOn(t *testing.T, name string, claims ...string) {
	t.Helper()
	for _, v := range claims {
		before := c.progress(t, name, v)
		eventually(t, "the load on "+v+" goes on", func() error {
			if now := c.progress(t, name, v); now <= before {
				return fmt.Errorf("%d writes", now)
			}
			return nil
		})
	}
}

// finish ends the loads of a pod, and wants to see that each has read back everything.
func (c cluster) finish(t *testing.T, name string, claims ...string) string {
	t.Helper()
	c.exec(t, name, "kill -TERM 1")
	c.phase(t, "pod", name, "Succeeded")
	out := c.run(t, "-n", namespace, "logs", name)
	if n := strings.Count(out, "done writes="); n != len(claims) {
		t.Fatalf("%d of %d loads of pod %s read all they wrote:\n%s", n, len(claims), name, out)
	}
	var slowest int
	for line := range strings.Lines(out) {
		var w, f, r, s, e int
		if n, _ := fmt.Sscanf(line, "done writes=%d flushes=%d reads=%d slowest=%dms slowest-ever=%dms", &w, &f, &r, &s,
			&e); n == 5 {
			slowest = max(slowest, e)
		}
	}
	return fmt.Sprintf("slowest call %d ms", slowest)
}

// shopResult is as much of the shop's check as the steps look at.
type shopResult struct{ Orders, OrdersWithoutStock, MovementsWithoutOrder, LostOrders int }

// checkShop has the shop check its databases in a pod. acks is what it has acknowledged. The check fails for orders
// without their stock movement, and for more movements without an order than shops were cut off: by a disaster, a
// failover or a snapshot.
func (c cluster) checkShop(t *testing.T, ns, pod, acks, stock, sales string, cuts int) shopResult {
	t.Helper()
	result, err := c.findShop(ns, pod, acks, stock, sales, cuts)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// findShop is checkShop with the failure as an error; what the check has found is returned all the same.
func (c cluster) findShop(ns, pod, acks, stock, sales string, cuts int) (result shopResult, err error) {
	found, err := c.try(acks, "-n", ns, "exec", "-i", pod, "--", "shop", "check", "--stock", stock, "--sales", sales,
		"--cuts", strconv.Itoa(cuts))
	if err != nil {
		err = fmt.Errorf("%w: %s", err, found)
	}
	if invalid := json.Unmarshal([]byte(found), &result); err == nil {
		err = invalid
	}
	return result, err
}
