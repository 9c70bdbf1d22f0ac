package plan

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// maxGroupName is the longest name of a group at the engine.
const maxGroupName = 63

// engineGroupName is the name of the group that a ConsistencyGroup has at the engine of a node. It begins with names
// for people, and ends with a digest of everything that makes it one of a kind: also of the uid of the namespace, so
// that a namespace that is made anew does not get the group of its predecessor, and a ConsistencyGroup that was lost
// and is made anew gets its own.
func engineGroupName(namespace string, uid types.UID, group, node string) string {
	sum := sha256.Sum256([]byte(string(uid) + "\x00" + group + "\x00" + node))
	digest := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))[:10]
	readable := namespace
	if group != namespace {
		readable += "." + group
	}
	if most := maxGroupName - 1 - len(digest); len(readable) > most {
		readable = strings.TrimRight(readable[:most], "-.")
	}
	return readable + "-" + digest
}
