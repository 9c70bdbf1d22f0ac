package core

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// statesDoc is made from the scripts: see TestStates.
const statesDoc = "../../../docs/design/states.md"

// machines are the states of a group that have names, each by how it is read.
var machines = []struct {
	name, about string
	state       func(m *Meta) string
}{
	{"Role", "What a site is. `role.go`", func(m *Meta) string { return string(m.Role) }},
	{"Copy", "What the copy of a secondary is. At a primary it is whole. `copystate.go`",
		func(m *Meta) string { return m.Copy.String() }},
	{"Flow", "Whether a primary ships. `flow.go`", func(m *Meta) string {
		if m.Flow == Flowing {
			return "flowing"
		}
		return string(m.Flow)
	}},
	{"Sync", "What a primary knows of its peer's copy. `meta.go`", func(m *Meta) string { return string(m.Sync) }},
	{"Yield", "How far a site is that gives way after a fork. `yield.go`", func(m *Meta) string {
		if m.Yield == nil {
			return "none"
		}
		return string(m.Yield.Stage)
	}},
	{"Divergence", "Whether a site knows that its peer has another history. `timeline.go`", func(m *Meta) string {
		if m.Divergence == nil {
			return "none"
		}
		return "diverged"
	}},
}

// transitions are what was seen: by machine, from and to, the events; and by event, the roles in which it was refused.
type transitions struct {
	mu      sync.Mutex
	changes map[[3]string]map[string]bool
	refused map[string]map[string]bool
}

func newTransitions() *transitions {
	return &transitions{changes: map[[3]string]map[string]bool{}, refused: map[string]map[string]bool{}}
}

func note[K comparable](in map[K]map[string]bool, key K, what string) {
	if in[key] == nil {
		in[key] = map[string]bool{}
	}
	in[key][what] = true
}

func (s *transitions) observe(e Event, before, after *Meta, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(fmt.Sprintf("%T", e), "core.")
	if err != nil {
		note(s.refused, name, string(before.Role))
		return
	}
	for _, m := range machines {
		if from, to := m.state(before), m.state(after); from != to {
			note(s.changes, [3]string{m.name, from, to}, name)
		}
	}
}

// unknown are the changes and refusals that are not among those of o.
func (s *transitions) unknown(o *transitions) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, events := range s.changes {
		for event := range events {
			if !o.changes[key][event] {
				list = append(list, fmt.Sprintf("%s: %s -> %s by %s", key[0], key[1], key[2], event))
			}
		}
	}
	for event, roles := range s.refused {
		for role := range roles {
			if !o.refused[event][role] {
				list = append(list, fmt.Sprintf("%s refused at a %s", event, role))
			}
		}
	}
	slices.Sort(list)
	return list
}

func joinSorted(set map[string]bool, separator string) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), separator)
}

const statesIntroduction = `# States of a group

This page is made from the scripts in ` + "`pkg/replication/core/testdata`" + `, by
` + "`go test ./pkg/replication/core -run TestStates -rewrite`" + `. It has every change of state that a script shows,
with the events that bring it about. A random simulation of two sites (` + "`TestSimulation`" + `) fails if it meets a
change or a refusal that is not here. ` + "`event.go`" + ` describes the events.
`

// markdown is the page.
func (s *transitions) markdown() string {
	var b strings.Builder
	b.WriteString(statesIntroduction)
	id := func(state string) string { return strings.ReplaceAll(state, " ", "_") }
	for _, m := range machines {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```mermaid\nstateDiagram-v2\n", m.name, m.about)
		var keys [][3]string
		for key := range s.changes {
			if key[0] == m.name {
				keys = append(keys, key)
			}
		}
		slices.SortFunc(keys, func(x, y [3]string) int { return strings.Compare(x[1]+">"+x[2], y[1]+">"+y[2]) })
		for _, key := range keys {
			fmt.Fprintf(&b, "    %s --> %s: %s\n", id(key[1]), id(key[2]), joinSorted(s.changes[key], "<br>"))
		}
		b.WriteString("```\n")
	}
	b.WriteString("\n## Refused\n\nRequests that are refused with an error, and change nothing.\n\n" +
		"| event | refused at a site that is |\n|---|---|\n")
	for _, event := range slices.Sorted(maps.Keys(s.refused)) {
		fmt.Fprintf(&b, "| %s | %s |\n", event, joinSorted(s.refused[event], ", "))
	}
	return b.String()
}

// collect runs the scripts for what they show.
func collect(t *testing.T) *transitions {
	t.Helper()
	s := newTransitions()
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("scripts: %v, %v", paths, err)
	}
	for _, path := range paths {
		runScript(t, path, s.observe)
	}
	return s
}

// The page of states is what the scripts show, and the scripts show each change of role that there can be.
func TestStates(t *testing.T) {
	shown := collect(t)
	for from, list := range turns {
		for _, to := range list {
			if shown.changes[[3]string{"Role", string(from), string(to)}] == nil {
				t.Errorf("no script shows how a %s becomes %s", from, to)
			}
		}
	}
	want := shown.markdown()
	if f := flag.Lookup("rewrite"); f != nil && f.Value.String() == "true" {
		if err := os.WriteFile(statesDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(statesDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not what the scripts show; renew it: go test ./pkg/replication/core -run TestStates -rewrite",
			statesDoc)
	}
}
