package main

import (
	"strings"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	const pass = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}` + "\n"
	tests := []struct {
		name   string
		input  string
		wantOK bool
		want   []string
	}{
		{"all pass", pass + `{"Action":"pass","Package":"p","Elapsed":0.1}`, true,
			[]string{"ok    p", "1 tests passed, 0 failed"}},
		{"nothing ran", "", false, []string{"0 tests passed"}},
		{
			"a failure shows its output",
			pass + `{"Action":"output","Package":"p","Test":"TestB","Output":"want 1, got 2\n"}` + "\n" +
				`{"Action":"fail","Package":"p","Test":"TestB"}` + "\n" +
				`{"Action":"fail","Package":"p"}`,
			false,
			[]string{"want 1, got 2", "  p.TestB", "1 failed"},
		},
		{
			"a failure's message is in the list",
			`{"Action":"output","Package":"p","Test":"TestB","Output":"some log\n"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:7: want 1, got 2\n"}` + "\n" +
				`{"Action":"fail","Package":"p","Test":"TestB"}` + "\n",
			false,
			[]string{"  p.TestB\n    b_test.go:7: want 1, got 2\n"},
		},
		{
			"a skip shows its reason",
			pass + `{"Action":"output","Package":"p","Test":"TestC","Output":"=== RUN TestC\n"}` + "\n" +
				`{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:3: not root\n"}` + "\n" +
				`{"Action":"skip","Package":"p","Test":"TestC"}`,
			true,
			[]string{"p.TestC: c_test.go:3: not root", "1 skipped"},
		},
		{
			"a package that dies without a failed test",
			pass + `{"Action":"output","Package":"p","Output":"panic: boom\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
			false,
			[]string{"panic: boom", "FAIL  p"},
		},
		{
			"a test that a timeout ended",
			pass + `{"Action":"output","Package":"p","Test":"TestD","Output":"panic: test timed out\n"}` + "\n" +
				`{"Action":"fail","Package":"p"}`,
			false,
			[]string{"panic: test timed out", "  p.TestD (did not end)", "1 failed"},
		},
		{"a failed build", pass + `{"Action":"build-fail","ImportPath":"q"}`, false, []string{"1 builds failed"}},
		{"lines of the go command pass through", "go: no such thing\n" + pass, true, []string{"go: no such thing"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out)
			if err := s.read(strings.NewReader(tt.input)); err != nil {
				t.Fatal(err)
			}
			if ok := s.print(time.Second); ok != tt.wantOK {
				t.Errorf("ok = %v, want %v", ok, tt.wantOK)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q:\n%s", want, out.String())
				}
			}
		})
	}
}
