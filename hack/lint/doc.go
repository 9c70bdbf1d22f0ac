// Package lint holds the house rules that gofmt, vet and staticcheck do not know, as a test over the sources.
//
// Each rule is a function from a parsed file to complaints, with its reason in its comment. An exception is a line in
// the rule's allow list with a reason, never a comment in the code that breaks the rule.
package lint
