package replication

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// Locate says whether this node has a group, for the gateway of its site (package gateway). A group that cannot be opened is had, too:
// another node must not begin a second copy of it. An error means that nothing is known.
func (s *Site) Locate(request *linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
	if _, err := parseID(request.GetGroupId()); err != nil {
		return nil, err
	}
	dir, err := s.cfg.Pool.GroupDir(request.GetGroupId())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	response := &linkpb.LocateResponse{}
	if response.TotalBytes, response.FreeBytes, err = s.cfg.Pool.Space(); err != nil {
		return nil, err
	}
	if _, response.JournalFreeBytes, err = s.cfg.Pool.JournalSpace(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	response.Holds = s.broken[dir] != nil
	for _, g := range s.groups {
		response.Holds = response.Holds || g.ID() == request.GetGroupId()
	}
	if g := s.groups[request.GetGroupName()]; g != nil && g.ID() != request.GetGroupId() {
		response.OtherGroupId = g.ID()
	}
	return response, nil
}
