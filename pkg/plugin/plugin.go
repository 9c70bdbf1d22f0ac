// Package plugin holds what all programs of the CSI plugin agree on: its name, its topology key, its capabilities, the
// gRPC metadata of calls from the controller to a node, and the form of list tokens.
//
// It is not the driver and does not import it: the controller, the gateway and the node registry use it too. Everything
// in it is constant or a pure function, so it is safe for concurrent use.
package plugin

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// Name is the driver's name in CSIDriver objects and StorageClasses.
const Name = "csi.slipstream.dev"

// TopologyKey is the only key of a volume's accessible topology. Its value is the node's id.
const TopologyKey = "topology.slipstream.dev/node"

// ValidateNodeID checks the name of a node. It becomes the value of TopologyKey. Kubernetes puts that into a label of
// the Node and into the node affinity of volumes. It rejects a value that no label can have only when the first
// PersistentVolume is created, and the claim then waits forever.
func ValidateNodeID(id string) error {
	if id == "" {
		return errors.New("node id is missing")
	}
	if why := validation.IsValidLabelValue(id); len(why) > 0 {
		return fmt.Errorf("node id %.300q (%s) cannot be the value of the label %s: %s; "+
			"give the node a name that can, of at most %s",
			id, words.Count(len(id), "character"), TopologyKey, strings.Join(why, "; "),
			words.Count(validation.LabelValueMaxLength, "character"))
	}
	return nil
}
