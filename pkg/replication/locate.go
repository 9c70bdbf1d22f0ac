package replication

import (
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// Locate says whether this node has a group of a peer, for the gateway of its site (package gateway). A group that
// cannot be opened counts as held: another node must not begin a second copy of it. An error means that nothing is
// known.
func (s *Site) Locate(request *linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
	if _, err := parseID(request.GetGroupId()); err != nil {
		return nil, err
	}
	response := &linkpb.LocateResponse{}
	var err error
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
	f, err := s.relate(request.GetPeer(), request.GetGroupId(), request.GetGroupName())
	if err != nil {
		return nil, err
	}
	switch f.relation {
	case relationPeer, relationSpent: // the new group comes to where the spent one is, which makes way for it
		response.Holds = true
	case relationNamesake:
		response.OtherGroupId = f.group.ID()
	case relationStranger:
		response.Foreign = true
	}
	return response, nil
}
