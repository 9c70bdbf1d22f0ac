package byhand

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// named is a command in a message, with the site where it is to be given.
var named = regexp.MustCompile("`(slipctl [^`]+)` at ((?:site-[ab])|(?:this site))")

// reader is a person who does what messages say.
type reader struct {
	*machines
	t *testing.T
	// followed are the commands that were run because a message named them.
	followed []string
}

// machineOf is where a site of the test is.
var machineOf = map[string]string{"site-a": first, "site-b": second}

// refused runs a command at a site, which has to fail with the status for "another command comes first", and returns
// its message.
func (r *reader) refused(site, command string) string {
	r.t.Helper()
	machine := machineOf[site]
	out, ok := r.shells[machine].run(r.replace[machine].Replace(command) + "; [ $? = 4 ]")
	if !ok {
		r.t.Fatalf("%s at %s is not refused with status 4:\n%s", command, site, out)
	}
	return out
}

// follow runs the command of a message that begins as wanted, at the site that the message names. What destroys
// something is confirmed.
func (r *reader) follow(here, message, begin string) string {
	r.t.Helper()
	for _, m := range named.FindAllStringSubmatch(message, -1) {
		command, site := m[1], m[2]
		if site == "this site" {
			site = here
		}
		if command != begin {
			continue
		}
		if !slices.Contains(r.followed, command) {
			r.followed = append(r.followed, command)
		}
		for _, verb := range []string{"--force", " yield ", " commit ", " rollback "} {
			if strings.Contains(command, verb) {
				command += " --yes"
				break
			}
		}
		return r.must(machineOf[site], command)
	}
	r.t.Fatalf("the message names no %q:\n%s", begin, message)
	return ""
}

// Each command that a message of a group names is right where the message says that it is to be given: it is run there,
// and it does what the message promised.
func TestMessagesNameWhatHelps(t *testing.T) {
	r := &reader{machines: newMachines(t), t: t}
	r.must(first, "slipctl site init --dir /srv/slipstream --name site-a --listen 10.0.0.1:9443 "+
		"--peer site-b=10.0.0.2:9443 --authority /root/authority > /root/start.sh\n. /root/start.sh")
	r.must(second, "slipctl site init --dir /srv/slipstream --name site-b --listen 10.0.0.2:9443 "+
		"--peer site-a=10.0.0.1:9443 --authority /root/authority > /root/start.sh\n. /root/start.sh")
	r.must(first, "slipctl volume create orders --size 64Mi --group shop --remote site-b\n"+
		"slipctl group set shop --history 10m\nslipctl group wait shop --for caught-up --timeout 1m")
	caughtUp := func(machine string) {
		t.Helper()
		r.must(machine, "slipctl group wait shop --for caught-up --timeout 1m")
	}
	write := func(machine, text string) {
		t.Helper()
		r.must(machine, fmt.Sprintf("echo %s > /mnt/orders/%[1]s\nsync /mnt/orders/%[1]s", text))
	}

	// A copy is not written to, and not promoted beside its primary.
	message := r.refused("site-b", "slipctl group promote shop")
	r.follow("site-b", message, "slipctl group demote shop")
	// Of a group that was demoted no volume is deleted here: the message says who has to act.
	out, _ := r.shells[first].run("slipctl volume delete orders < /dev/null")
	if !strings.Contains(out, "demoted here for site-b") || !strings.Contains(out, "`slipctl group remove shop vol-") {
		t.Errorf("a deletion at a demoted site says\n%s", out)
	}
	message = r.refused("site-a", "slipctl volume mount orders /mnt/orders")
	r.follow("site-a", message, "slipctl group promote shop")
	r.must(second, "slipctl volume mount orders /mnt/orders")
	write(second, "one")
	message = r.refused("site-a", "slipctl volume mount orders /mnt/orders")
	if !strings.Contains(message, "`slipctl group relocate shop` at site-b") {
		t.Errorf("a mount at the secondary says\n%s", message)
	}
	message = r.refused("site-b", "slipctl group relocate shop")
	r.must(second, "slipctl volume unmount orders")
	r.follow("site-b", message, "slipctl group relocate shop")
	for _, command := range []string{"group bookmark shop now", "group remove shop orders"} {
		if message = r.refused("site-b", "slipctl "+command); !strings.Contains(message, "at its primary, site-a") {
			t.Errorf("%s at the secondary says\n%s", command, message)
		}
	}

	// A suspended group does not move.
	r.must(first, "slipctl group suspend shop")
	message = r.refused("site-a", "slipctl group relocate shop")
	r.follow("site-a", message, "slipctl group resume shop")

	// A chosen point is stayed at, or left.
	r.must(first, "slipctl volume mount orders /mnt/orders")
	write(first, "two")
	caughtUp(first)
	r.must(second, "slipctl group promote shop --at $(slipctl group points shop -o json | sed -n "+
		"'/\"oldest\"/,/}/s/.*\"ordinal\": \\([0-9]*\\).*/\\1/p') --yes")
	message = r.refused("site-b", "slipctl group relocate shop")
	r.follow("site-b", message, "slipctl group rollback shop")
	caughtUp(first)
	write(first, "three")
	caughtUp(first)
	r.must(second, "slipctl group promote shop --at $(slipctl group points shop -o json | sed -n "+
		"'/\"newest\"/,/}/s/.*\"ordinal\": \\([0-9]*\\).*/\\1/p') --yes")
	message = r.refused("site-b", "slipctl group suspend shop")
	r.follow("site-b", message, "slipctl group commit shop")

	// Both sites took writes. The one that gives way says where it looks for the other.
	write(first, "four")
	eventuallyPrints(r, first, "slipctl group status shop", "diverged")
	message = r.refused("site-a", "slipctl group yield shop --yes")
	r.must(first, "slipctl volume unmount orders")
	r.follow("site-a", message, "slipctl group yield shop")
	r.must(first, "slipctl group wait shop --timeout 1m")
	if out := r.must(first, "slipctl group tails shop"); !strings.Contains(out, "ready") {
		t.Errorf("what site-a gave up is not kept:\n%s", out)
	}

	id := regexp.MustCompile(`tail-[0-9a-f]+-0`).FindString(r.must(first, "slipctl group tails shop"))
	r.must(first, "slipctl volume create gone --size 64Mi --plain --from "+id+"\nslipctl volume mount gone /mnt/gone\n"+
		"grep four /mnt/gone/four\nslipctl volume unmount gone\nslipctl volume delete gone --yes")

	// The site of the primary is lost.
	caughtUp(second)
	message = r.refused("site-a", "slipctl group promote shop")
	r.follow("site-a", message, "slipctl group promote shop --force")
	eventuallyPrints(r, second, "slipctl group status shop", "diverged")
	r.must(second, "slipctl group yield shop --yes --wait --timeout 1m")

	// A peer that does not answer.
	r.must(second, "kill %2; wait %2; true")
	out, _ = r.shells[first].run("slipctl group relocate shop --timeout 1s")
	r.follow("site-a", out, "slipctl group status shop")

	message = r.refused("site-a", "slipctl group delete shop")
	r.follow("site-a", message, "slipctl group delete shop --force")
	for _, verb := range core.CommandVerbs {
		if command := fmt.Sprintf(string(verb), "shop"); !slices.Contains(r.followed, command) {
			t.Errorf("no message led to %s", command)
		}
	}
}

// eventuallyPrints runs a command until it prints a text, for some seconds.
func eventuallyPrints(r *reader, machine, command, text string) {
	r.t.Helper()
	r.must(machine, fmt.Sprintf("for i in $(seq 100); do %s 2>&1 | grep -q %q && break; sleep 0.1; done; "+
		"%[1]s | grep %[2]q", command, text))
}
