package shim

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Mode decides when a write reaches the Device.
type Mode uint8

const (
	// ModeFlush uses the kernel's writeback cache. Attach the loop device buffered.
	ModeFlush Mode = iota
	// ModeAck uses direct I/O: a write, discard or zeroing is durable when it is acknowledged, so nothing needs a flush.
	// Attach the loop device with LO_FLAGS_DIRECT_IO.
	ModeAck
)

// String returns "flush" or "ack".
func (m Mode) String() string {
	switch m {
	case ModeFlush:
		return "flush"
	case ModeAck:
		return "ack"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) {
	if m > ModeAck {
		return nil, fmt.Errorf("unknown shim mode %d", uint8(m))
	}
	return []byte(m.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(b []byte) error {
	switch string(b) {
	case "flush":
		*m = ModeFlush
	case "ack":
		*m = ModeAck
	default:
		return fmt.Errorf("unknown shim mode %q, want \"flush\" or \"ack\"", b)
	}
	return nil
}

const (
	// FileSize is the size in bytes that the served file reports, whatever the Device's size: a loop device's size limit
	// makes it the volume's size, and growing a volume is then a loop ioctl and nothing here. It is a multiple of
	// everything, and far below the kernel's s_maxbytes (2^63-1) so that no offset computed from it overflows.
	FileSize = 1 << 60

	// stateVersion changes when a field changes its meaning. A reader refuses other versions: guessing what was
	// negotiated with a kernel corrupts data.
	stateVersion = 1
	// ackStateVersion is the version of a state with ModeAck. Version 1 is from releases that answered writes before they
	// were durable, and needed flushes. This release may adopt their mounts, and they must not adopt those of this one,
	// whose kernel sends no flushes.
	ackStateVersion = 2

	pageSize = 4096
	// maxWriteBytes is the largest WRITE and READ asked for at INIT, and the kernel's default limit
	// (fs.fuse.max_pages_limit, 256 pages).
	maxWriteBytes = 1 << 20
)

// State is what has to be remembered of a mount to serve it from another process: no INIT comes again. It is kept
// beside the descriptor.
type State struct {
	VolumeID   string
	MountPoint string
	Mode       Mode
	// Device is the mount's "major:minor" in mountinfo, which names its /sys/class/bdi directory and, by its minor, its
	// /sys/fs/fuse/connections directory.
	Device string
	// ProtoMinor and Flags were negotiated at INIT.
	ProtoMinor uint32
	Flags      uint64
	// MaxWriteBytes bounds a request's data.
	MaxWriteBytes uint32
	// FileSizeBytes is what the kernel was told and has cached.
	FileSizeBytes int64
}

// stateJSON is State's encoding. Unknown fields are ignored, so that a later release can add one without a new version
// if the older one may do without it.
type stateJSON struct {
	Version       int    `json:"version"`
	VolumeID      string `json:"volumeID"`
	MountPoint    string `json:"mountPoint"`
	Mode          Mode   `json:"mode"`
	Device        string `json:"device"`
	ProtoMinor    uint32 `json:"protoMinor"`
	Flags         uint64 `json:"flags"`
	MaxWriteBytes uint32 `json:"maxWriteBytes"`
	FileSizeBytes int64  `json:"fileSizeBytes"`
}

// Marshal encodes the state as JSON. It fails for a state that ParseState would refuse.
func (st State) Marshal() ([]byte, error) {
	if err := st.validate(); err != nil {
		return nil, err
	}
	version := stateVersion
	if st.Mode == ModeAck {
		version = ackStateVersion
	}
	return json.Marshal(stateJSON{
		Version:       version,
		VolumeID:      st.VolumeID,
		MountPoint:    st.MountPoint,
		Mode:          st.Mode,
		Device:        st.Device,
		ProtoMinor:    st.ProtoMinor,
		Flags:         st.Flags,
		MaxWriteBytes: st.MaxWriteBytes,
		FileSizeBytes: st.FileSizeBytes,
	})
}

// ParseState decodes what Marshal returned. On an error the mount it describes cannot be adopted by this release; it
// can still be served by the release that made it.
func ParseState(b []byte) (State, error) {
	var j stateJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return State{}, fmt.Errorf("shim state: %w", err)
	}
	if j.Version != stateVersion && (j.Version != ackStateVersion || j.Mode != ModeAck) {
		return State{}, fmt.Errorf("shim state of volume %q has version %d, this release reads up to %d: serve it with "+
			"the release that mounted it",
			j.VolumeID, j.Version, ackStateVersion)
	}
	st := State{
		VolumeID:      j.VolumeID,
		MountPoint:    j.MountPoint,
		Mode:          j.Mode,
		Device:        j.Device,
		ProtoMinor:    j.ProtoMinor,
		Flags:         j.Flags,
		MaxWriteBytes: j.MaxWriteBytes,
		FileSizeBytes: j.FileSizeBytes,
	}
	if err := st.validate(); err != nil {
		return State{}, err
	}
	return st, nil
}

var deviceNumber = regexp.MustCompile(`^[0-9]{1,10}:[0-9]{1,10}$`)

func (st State) validate() error {
	if err := checkVolumeID(st.VolumeID); err != nil {
		return fmt.Errorf("shim state: %w", err)
	}
	switch {
	case st.Mode > ModeAck:
		return fmt.Errorf("shim state of volume %q: unknown mode %d", st.VolumeID, uint8(st.Mode))
	case !filepath.IsAbs(st.MountPoint) || filepath.Clean(st.MountPoint) != st.MountPoint ||
		strings.ContainsRune(st.MountPoint, 0):
		return fmt.Errorf("shim state of volume %q: mount point %q is not a clean absolute path", st.VolumeID, st.MountPoint)
	case !deviceNumber.MatchString(st.Device):
		return fmt.Errorf("shim state of volume %q: device %q is not major:minor", st.VolumeID, st.Device)
	case st.ProtoMinor < minKernelMinor || st.Flags&initHasResend == 0:
		return fmt.Errorf("shim state of volume %q: protocol 7.%d with flags %#x cannot resend requests", st.VolumeID,
			st.ProtoMinor, st.Flags)
	case st.MaxWriteBytes < pageSize || st.MaxWriteBytes > maxWriteBytes || st.MaxWriteBytes%pageSize != 0:
		return fmt.Errorf("shim state of volume %q: max write %d is not a number of pages up to %d bytes", st.VolumeID,
			st.MaxWriteBytes, maxWriteBytes)
	case st.FileSizeBytes <= 0 || st.FileSizeBytes%pageSize != 0:
		return fmt.Errorf("shim state of volume %q: file size %d is not a positive number of pages", st.VolumeID,
			st.FileSizeBytes)
	}
	return nil
}

// checkVolumeID accepts what can be a mount's source without mountinfo having to escape it.
func checkVolumeID(id string) error {
	if id == "" || len(id) > 255 {
		return fmt.Errorf("volume id %q must have 1 to 255 bytes", id)
	}
	for _, r := range id {
		if r <= ' ' || r == '\\' || r == '#' || r == 0x7f || r == '\ufffd' {
			return fmt.Errorf("volume id %q must not contain spaces, control characters, '#' or '\\'", id)
		}
	}
	return nil
}
