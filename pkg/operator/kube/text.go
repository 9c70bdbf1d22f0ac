package kube

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxTextBytes bounds texts of others in a status or an event.
const maxTextBytes = 1000

// Condition returns a condition with a message.
func Condition(t string, status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
	return metav1.Condition{Type: t, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Cut shortens a text of others to what a status takes.
func Cut(text string) string {
	if len(text) <= maxTextBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxTextBytes-3], "") + "..."
}

// Some names at most ten.
func Some(names []string) string {
	slices.Sort(names)
	if len(names) > 10 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:10], ", "), len(names)-10)
	}
	return strings.Join(names, ", ")
}

var (
	callError = regexp.MustCompile(`rpc error: code = \w+ desc = `)
	// engineCommand is a command of slipctl as messages of the engine name it (core.Command). The plus keeps it apart
	// from the commands that a test looks for in all texts.
	engineCommand = regexp.MustCompile("`slipctl +group (promote|demote|relocate|yield|resume|commit|rollback) " +
		"[^ `]+( --force)?`")
)

// Words makes a message of the engine one for a person who has kubectl: without the marks of a failed call, and with
// the plugin's commands about a ConsistencyGroup instead of slipctl's about its groups at the engine. The group has the
// same name at both sites.
func Words(text, namespace, group string) string {
	text = callError.ReplaceAllString(text, "")
	return engineCommand.ReplaceAllStringFunc(text, func(command string) string {
		parts := engineCommand.FindStringSubmatch(command)
		verb := parts[1]
		if verb == "promote" {
			verb = "failover"
		}
		return fmt.Sprintf("`kubectl slipstream %s %s -n %s%s`", verb, group, namespace, parts[2])
	})
}
