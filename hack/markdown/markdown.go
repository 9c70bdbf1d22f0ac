// Package markdown has what the generators of documents share. All functions are pure.
package markdown

import (
	"strings"
	"unicode/utf8"
)

// columns is the longest line of a document.
const columns = 120

// Fill breaks a paragraph into lines of at most 120 columns. The first line begins with first, for example "- " for an
// item of a list; the others are indented as far.
func Fill(first, text string) string {
	var b strings.Builder
	b.WriteString(first)
	indent := utf8.RuneCountInString(first)
	column := indent
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > columns:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}
