package gateway

import (
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// place chooses the node for a new group: weighted rendezvous hashing (Thaler and Ravishankar, "Using name-based
// mappings to increase hit rates", 1998; with weights as in Schindelhauer and Schomaker, "Weighted distributed hash
// tables", 2005). A node gets groups in proportion to the size of its pool's file system, and every gateway comes to
// the same choice.
//
// The rejected way is the node with the most free space: of two calls of one primary that are under way at once,
// through two gateways, each could see another node as that, and the group would be on both. Only nodes that have no
// room for the group's journal are left out, since nothing good can come of those.
func place(hello *linkpb.Hello, candidates []answer) (link.Node, bool) {
	best, least := link.Node{}, math.Inf(1)
	for _, c := range candidates {
		if c.response.GetJournalFreeBytes() < hello.GetJournalSizeBytes() || c.response.GetFreeBytes() <= 0 {
			continue
		}
		if s := score(hello.GetGroupId(), c.node.Name, c.response.GetTotalBytes()); s < least {
			best, least = c.node, s
		}
	}
	return best, best.Name != ""
}

// score is exponentially distributed with the weight as its rate, so that the least of several belongs to each with a
// probability in proportion to its weight.
func score(groupID, node string, weight int64) float64 {
	sum := sha256.Sum256([]byte(groupID + "/" + node))
	const bits = 53 // of a float64
	uniform := (float64(binary.BigEndian.Uint64(sum[:])>>(64-bits)) + 0.5) / (1 << bits)
	return -math.Log(uniform) / float64(max(weight, 1))
}
