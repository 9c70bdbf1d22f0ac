package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// promtest is a test file of promtool.
type promtest struct {
	RuleFiles          []string `json:"rule_files"`
	EvaluationInterval string   `json:"evaluation_interval"`
	Tests              []struct {
		Name        string `json:"name"`
		Interval    string `json:"interval"`
		InputSeries []struct {
			Series string `json:"series"`
			Values string `json:"values"`
		} `json:"input_series"`
		Expressions []struct {
			Expr     string `json:"expr"`
			EvalTime string `json:"eval_time"`
			Samples  []struct {
				Labels string  `json:"labels"`
				Value  float64 `json:"value"`
			} `json:"exp_samples"`
		} `json:"promql_expr_test"`
	} `json:"tests"`
}

// TestRules runs promtool: it checks the rules and runs the tests in testdata, where each alert fires once and ends,
// and where no alert fires in the good state.
func TestRules(t *testing.T) {
	dir := t.TempDir()
	promtool := filepath.Join(dir, "promtool")
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		if name == promtool {
			cmd.Dir = dir
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
		}
	}
	// Without the ways in which Prometheus finds its targets, which are most of its packages.
	run("go", "build", "-tags", "remove_all_sd", "-o", promtool, "github.com/prometheus/prometheus/cmd/promtool")
	var tests []string
	for _, pattern := range []string{rulesDir + "/*.yaml", "testdata/*.test.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(file, "testdata") {
				tests = append(tests, filepath.Base(file))
			} else {
				run(promtool, "check", "rules", "--lint=all", "--lint-fatal", filepath.Base(file))
			}
		}
	}
	if len(tests) < 4 {
		t.Fatalf("tests %v", tests)
	}
	run(promtool, append([]string{"test", "rules"}, tests...)...)
}

// TestEveryAlertIsTested: the tests of promtool have a test for each alert in which it fires, and then does not.
func TestEveryAlertIsTested(t *testing.T) {
	fires, ends, waits := map[string]bool{}, map[string]bool{}, map[string]bool{}
	files, _ := filepath.Glob("testdata/*.test.yaml")
	for _, file := range files {
		var p promtest
		readYAML(t, file, &p)
		for _, test := range p.Tests {
			for _, e := range test.Expressions {
				if e.Expr != fmt.Sprintf(`ALERTS{alertname="%s", alertstate="firing"}`, test.Name) {
					continue
				}
				switch {
				case len(e.Samples) > 0:
					fires[test.Name] = true
				case fires[test.Name]:
					ends[test.Name] = true
				default:
					waits[test.Name] = true
				}
			}
		}
	}
	all := rules(t)
	if len(all) < 30 {
		t.Fatalf("%d rules", len(all))
	}
	for _, r := range all {
		if !fires[r.Alert] || !ends[r.Alert] || r.For != "" && !waits[r.Alert] {
			t.Errorf("%s: fires %t, ends %t, waits %t", r.Alert, fires[r.Alert], ends[r.Alert], waits[r.Alert])
		}
	}
}

// TestHealthyHasEveryMetric: a metric that is missing in the good state could not fire there anyway.
func TestHealthyHasEveryMetric(t *testing.T) {
	text, err := os.ReadFile("testdata/healthy.test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		for _, name := range regexp.MustCompile(`\b(?:slipstream|csi|leader|controller)_\w+|\bup\b`).FindAllString(
			regexp.MustCompile(`"[^"]*"|\([a-z_, ]+\)`).ReplaceAllString(r.Expr, ""), -1) {
			if !regexp.MustCompile(name + `\{`).Match(text) {
				t.Errorf("%s: the good state has no %s", r.Alert, name)
			}
		}
	}
}

// TestAlerts looks at every metric in the rules, at the labels and values that they choose by, and at what they show.
func TestAlerts(t *testing.T) {
	for _, r := range rules(t) {
		of := checkExpression(t, r.Alert, r.Expr)
		for _, key := range []string{"summary", "action", "command", "runbook_url"} {
			text := r.Annotations[key]
			if text == "" {
				t.Errorf("%s has no %s", r.Alert, key)
			}
			for _, m := range regexp.MustCompile(`\$labels\.([a-z_]+)`).FindAllStringSubmatch(text, -1) {
				if !slices.Contains(of, m[1]) {
					t.Errorf("%s shows the label %s, which its metrics do not have", r.Alert, m[1])
				}
			}
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s has severity %q", r.Alert, s)
		}
	}
}

// TestConditionsHaveAlerts: each condition of the operator's objects has an alert that names it, and each alert names
// conditions that exist.
func TestConditionsHaveAlerts(t *testing.T) {
	text, err := os.ReadFile(root + "/pkg/api/v1alpha1/labels.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	for _, m := range regexp.MustCompile(`// Condition\w+(.*)(?:\n.*//.*)*\n\tCondition\w+ = "(\w+)"`).
		FindAllStringSubmatch(string(text), -1) {
		kind := "ConsistencyGroup"
		if strings.HasPrefix(m[1], " of a RemoteSite") {
			kind = "RemoteSite"
		}
		if strings.HasPrefix(m[1], " of a GroupActionSchedule") {
			kind = "GroupActionSchedule"
		}
		declared[kind+" "+m[2]] = false
	}
	if len(declared) < 11 || len(declared) != strings.Count(string(text), "\tCondition") {
		t.Fatalf("conditions %v", declared)
	}
	for _, r := range rules(t) {
		for name := range strings.SplitSeq(r.Annotations["conditions"], ", ") {
			if _, ok := declared[name]; !ok && name != "" {
				t.Errorf("%s: there is no condition %q", r.Alert, name)
			}
			declared[name] = true
		}
	}
	for name, alert := range declared {
		if !alert {
			t.Errorf("no alert is for the condition %s", name)
		}
	}
}

// TestPages: each alert has a page, which the alert names, with its severity and its command; and the list has it.
func TestPages(t *testing.T) {
	index, err := os.ReadFile(pagesDir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]bool{}
	for _, r := range rules(t) {
		pages[r.Alert+".md"] = true
		if !strings.HasSuffix(r.Annotations["runbook_url"], "/docs/alerts/"+r.Alert+".md") {
			t.Errorf("%s names the page %s", r.Alert, r.Annotations["runbook_url"])
		}
		text, err := os.ReadFile(filepath.Join(pagesDir, r.Alert+".md"))
		if err != nil {
			t.Error(err)
			continue
		}
		wait := "0"
		if r.For != "" {
			wait = r.For
		}
		line := fmt.Sprintf("| [%s](%s.md) | %s | %s |", r.Alert, r.Alert, r.Labels["severity"], wait)
		if !strings.Contains(string(index), line) {
			t.Errorf("the list of docs/alerts lacks: %s", line)
		}
		command := strings.Fields(r.Annotations["command"])
		page := strings.Join(strings.Fields(string(text)), " ")
		for _, want := range []string{"# " + r.Alert, "Severity " + r.Labels["severity"] + ",", "**Meaning.**",
			"**Effect.**", "## What to do", "It ends when", strings.Join(command[:2], " ")} {
			if !strings.Contains(page, want) {
				t.Errorf("the page of %s has no %q", r.Alert, want)
			}
		}
	}
	files, _ := os.ReadDir(pagesDir)
	for _, file := range files {
		if name := file.Name(); !pages[name] && name != "README.md" {
			t.Errorf("docs/alerts/%s is of no alert", name)
		}
	}
}

// TestCommands: each command of an alert is one that slipctl or the plugin has, with its flags.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/slipctl", "./cmd/kubectl-slipstream")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ran := 0
	for _, r := range rules(t) {
		command := regexp.MustCompile(`\{\{.*?\}\}`).ReplaceAllString(r.Annotations["command"], "shop")
		words := strings.Fields(command)
		switch {
		case words[0] == "slipctl":
		case words[0] == "kubectl" && words[1] == "slipstream":
			words = append([]string{"kubectl-slipstream"}, words[2:]...)
		case words[0] == "kubectl":
			continue
		default:
			t.Errorf("%s: the command is of no known program: %s", r.Alert, command)
			continue
		}
		ran++
		out, err := exec.Command(filepath.Join(dir, words[0]), append(words[1:], "--help")...).CombinedOutput()
		// The help of a command that does not exist is that of the one above it, which has commands.
		if err != nil || strings.Contains(string(out), "Available Commands:") {
			t.Errorf("%s: %s: %v\n%s", r.Alert, command, err, out)
		}
	}
	if ran < 15 {
		t.Errorf("%d commands", ran)
	}
}
