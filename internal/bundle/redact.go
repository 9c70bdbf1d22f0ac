package bundle

import "regexp"

// Left stands in place of a secret.
const Left = "(left out)"

// secrets are patterns of what is left out. Of each match the first group stays, and what follows it goes.
var secrets = []*regexp.Regexp{
	// Private keys, also where line ends are escaped as in JSON, and where the end is cut off.
	regexp.MustCompile(`(?s)(-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----).*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`),
	// The rest of one whose beginning is cut off.
	regexp.MustCompile(`(?s)\A()[A-Za-z0-9+/=\s]*-----END [A-Z0-9 ]*PRIVATE KEY-----`),
	// JSON web tokens, as service accounts have them.
	regexp.MustCompile(`()\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`),
	regexp.MustCompile(`(?i)(\b(?:bearer|basic) )[A-Za-z0-9+/=._~-]{8,}`),
	// Fields by their names, as in YAML, JSON, flags and logs. The data of a Secret has the last three.
	regexp.MustCompile(`(?i)(["']?\b(?:password|passwd|passphrase|secret|token|access[-_]?key|private[-_]?key|` +
		`client-key-data|tls\.key|ca\.key)\b["']?\s*[:=]\s*)(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',;}\]]+)`),
	// The user's part of an address.
	regexp.MustCompile(`(\b[a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@`),
}

// Redact returns a text without what looks like a secret: private keys, tokens, passwords.
func Redact(text []byte) []byte {
	for _, pattern := range secrets {
		text = pattern.ReplaceAll(text, []byte("${1}"+Left))
	}
	return text
}
