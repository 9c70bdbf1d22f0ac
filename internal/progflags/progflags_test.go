package progflags

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func newSet(out *bytes.Buffer) *Set {
	s := New("program", "It does something.", "v1")
	s.out = out
	s.String("site", "a", "`name` of the site")
	return s
}

func TestHelp(t *testing.T) {
	for _, c := range []struct {
		flag     string
		has, not []string
	}{
		{"--help", []string{"program: It does something.", "--site name\n        name of the site (default a)", "--v ",
			"--help-logging"}, []string{"logtostderr", "vmodule"}},
		{"-h", []string{"--site"}, []string{"logtostderr"}},
		{"--help-logging", []string{"--logtostderr", "--vmodule", "--v "}, []string{"--site"}},
		{"--version", []string{"v1\n"}, []string{"--site"}},
	} {
		var out bytes.Buffer
		if err := newSet(&out).Parse([]string{c.flag}); !errors.Is(err, ErrDone) {
			t.Errorf("%s: error %v", c.flag, err)
		}
		for _, text := range c.has {
			if !strings.Contains(out.String(), text) {
				t.Errorf("%s does not print %q:\n%s", c.flag, text, out.String())
			}
		}
		for _, text := range c.not {
			if strings.Contains(out.String(), text) {
				t.Errorf("%s prints %q", c.flag, text)
			}
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if len(line) > helpWidth {
				t.Errorf("%s prints a line of %d bytes", c.flag, len(line))
			}
		}
	}
}

func TestWrongArguments(t *testing.T) {
	for _, args := range [][]string{{"stray"}, {"--site", "b", "stray"}, {"--frobnicate"}, {"--site"}} {
		var out bytes.Buffer
		err := newSet(&out).Parse(args)
		if err == nil || errors.Is(err, ErrDone) || !strings.Contains(err.Error(), "see program --help") {
			t.Errorf("%q: error %v", args, err)
		}
		if out.Len() > 0 {
			t.Errorf("%q prints %q", args, out.String())
		}
	}
	var out bytes.Buffer
	s := newSet(&out)
	if err := s.Parse([]string{"--site", "b", "-v=3"}); err != nil || s.Lookup("site").Value.String() != "b" {
		t.Error(err)
	}
}
