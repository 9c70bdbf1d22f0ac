// Package lint holds the house rules that gofmt, vet and staticcheck do not know, as a test over the sources.
//
// golangci-lint has counterparts of the rules for calls, imports, comments and long lines, for Go files. It does not
// take their place: half of the rules look at scripts and documents too, and its developers advise against building it
// with the tool lines of go.mod, which is how CI gets its tools without a network.
//
// Each rule is a function from a parsed file to complaints, with its reason in its comment. An exception is a line in
// the rule's allow list with a reason, never a comment in the code that breaks the rule.
package lint
