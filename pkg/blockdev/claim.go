package blockdev

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// ClaimRecord is whose a volume is in Kubernetes, as the provisioner told it when the volume was made, and the operator
// since. It is for people, metrics and the objects of the other site; nothing else depends on it.
type ClaimRecord struct {
	Name      string `json:"name,omitempty"`      // of the PersistentVolumeClaim
	Namespace string `json:"namespace,omitempty"` // of the claim
	Volume    string `json:"volume,omitempty"`    // the PersistentVolume's name
	Block     bool   `json:"block,omitempty"`     // wanted as a raw block device
	// Manifest is what the operator has read of the claim; nil if no operator has.
	Manifest *ClaimManifest `json:"manifest,omitempty"`
}

// ClaimManifest is what another cluster needs to make the same claim. It does not change once it is made.
type ClaimManifest struct {
	StorageClass string            `json:"storageClass,omitempty"`
	AccessModes  []string          `json:"accessModes,omitempty"`
	RequestBytes int64             `json:"requestBytes,omitempty"` // 0: the size of the volume
	Labels       map[string]string `json:"labels,omitempty"`
}

// Limits of a manifest.
const (
	maxClaimLabels = 32
	maxAccessModes = 4
)

// accessModes are those that a volume of one node can have.
var accessModes = []string{"ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany"}

// Validate says what is wrong with a claim record. A nil one is fine.
func (c *ClaimRecord) Validate() error {
	if c == nil {
		return nil
	}
	for _, name := range []struct{ what, value string }{
		{"claim", c.Name}, {"claim's namespace", c.Namespace}, {"persistent volume", c.Volume},
	} {
		if name.value == "" {
			continue
		}
		if err := untrusted.CheckName(name.what, name.value); err != nil {
			return err
		}
	}
	return c.Manifest.validate()
}

func (m *ClaimManifest) validate() error {
	if m == nil {
		return nil
	}
	if m.StorageClass != "" {
		if err := untrusted.CheckName("claim's storage class", m.StorageClass); err != nil {
			return err
		}
	}
	switch {
	case m.RequestBytes < 0:
		return fmt.Errorf("claim requests %d bytes", m.RequestBytes)
	case len(m.AccessModes) > maxAccessModes:
		return fmt.Errorf("claim has %d access modes, the limit is %d", len(m.AccessModes), maxAccessModes)
	case len(m.Labels) > maxClaimLabels:
		return fmt.Errorf("claim has %d labels, the limit is %d", len(m.Labels), maxClaimLabels)
	}
	for _, mode := range m.AccessModes {
		if !slices.Contains(accessModes, mode) {
			return fmt.Errorf("claim's access mode \"%s\" is unknown", untrusted.Escape(mode, maxShownBytes))
		}
	}
	for key, value := range m.Labels {
		if why := validation.IsQualifiedName(key); len(why) > 0 {
			return fmt.Errorf("claim's label \"%s\" is no label key", untrusted.Escape(key, maxShownBytes))
		}
		if why := validation.IsValidLabelValue(value); len(why) > 0 {
			return fmt.Errorf("claim's label %s: \"%s\" is no label value", key, untrusted.Escape(value, maxShownBytes))
		}
	}
	return nil
}

// Equal reports whether two claims say the same.
func (c *ClaimRecord) Equal(o *ClaimRecord) bool {
	if c == nil || o == nil {
		return c == o
	}
	a, b := *c, *o
	a.Manifest, b.Manifest = nil, nil
	if a != b || (c.Manifest == nil) != (o.Manifest == nil) {
		return false
	}
	m, n := c.Manifest, o.Manifest
	return m == nil || m.StorageClass == n.StorageClass && m.RequestBytes == n.RequestBytes &&
		slices.Equal(m.AccessModes, n.AccessModes) && maps.Equal(m.Labels, n.Labels)
}

// clone returns a copy that shares nothing.
func (c *ClaimRecord) clone() *ClaimRecord {
	if c == nil {
		return nil
	}
	n := *c
	if c.Manifest != nil {
		m := *c.Manifest
		m.AccessModes, m.Labels = slices.Clone(m.AccessModes), maps.Clone(m.Labels)
		n.Manifest = &m
	}
	return &n
}
