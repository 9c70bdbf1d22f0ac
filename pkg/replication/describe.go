package replication

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// A member of a group describes a volume. The description comes from the pool's record at the primary, and goes to the
// pool's record at the secondary; on its way it is text from another site.

func memberOf(rec *blockdev.VolumeRecord, index uint32) (core.Member, error) {
	m := core.Member{
		Index: index, VolumeID: rec.ID, Name: rec.Name, SizeBytes: rec.SizeBytes, BlockSizeBytes: rec.BlockSizeBytes,
		Thick: rec.Thick, Order: string(rec.Order), FSType: rec.FSType, Joins: rec.Joins + 1,
	}
	if rec.Format != nil {
		format, err := json.Marshal(rec.Format)
		if err != nil {
			return m, err
		}
		m.Format = format
	}
	if rec.Claim != nil {
		claim, err := json.Marshal(rec.Claim)
		if err != nil {
			return m, err
		}
		m.Claim = claim
	}
	return m, nil
}

// maxMemberJSONBytes bounds the format and claim records inside a member.
const maxMemberJSONBytes = 16 << 10

// describe is the record of the volume that a member describes, without what only this site can say: group, role and
// what it is used for. It is checked as every record is (blockdev.VolumeRecord.Validate), so a member that passes can
// be stored, mounted and shown. The error names the volume.
func describe(m core.Member) (*blockdev.VolumeRecord, error) {
	if err := blockdev.ValidateID(m.VolumeID); err != nil {
		return nil, fmt.Errorf("member %d: volume %w", m.Index, err)
	}
	rec := &blockdev.VolumeRecord{
		ID: m.VolumeID, Name: m.Name, SizeBytes: m.SizeBytes, BlockSizeBytes: m.BlockSizeBytes, Thick: m.Thick,
		Replicable: true, Order: blockdev.Order(m.Order), FSType: m.FSType, Joins: m.Joins,
	}
	var err error
	if rec.Format, err = decodePart[blockdev.FormatRecord](m.Format); err != nil {
		return nil, fmt.Errorf("volume %s: format record: %w", m.VolumeID, err)
	}
	if rec.Claim, err = decodePart[blockdev.ClaimRecord](m.Claim); err != nil {
		return nil, fmt.Errorf("volume %s: claim record: %w", m.VolumeID, err)
	}
	return rec, rec.WithDefaults().Validate()
}

// decodePart decodes a record inside a member; nil for none.
func decodePart[R any](text json.RawMessage) (*R, error) {
	if len(text) == 0 || bytes.Equal(text, []byte("null")) {
		return nil, nil
	}
	if len(text) > maxMemberJSONBytes {
		return nil, fmt.Errorf("it has %s, the limit is %d", words.Count(len(text), "byte"), maxMemberJSONBytes)
	}
	r := new(R)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s", untrusted.Reason(err.Error()))
	}
	return r, nil
}

// checkDescriptions says what is wrong with what members say of their volumes. Those that have left concern no volume
// any more; what they say has to be harmless only.
func checkDescriptions(members []core.Member) error {
	for _, m := range members {
		if m.Removed() {
			m.SizeBytes, m.BlockSizeBytes, m.Order, m.FSType = blockdev.DefaultBlockSizeBytes, 0, "", ""
		}
		if _, err := describe(m); err != nil {
			return err
		}
	}
	return nil
}
