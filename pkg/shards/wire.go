package shards

import (
	"fmt"
	"math"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// What another node says is checked here, before anything is decided by it.

func idToWire(id epoch.ID) *shardpb.Epoch {
	return &shardpb.Epoch{Number: id.Number, Run: uint64(id.Run)}
}

func idFromWire(e *shardpb.Epoch) epoch.ID {
	return epoch.ID{Number: e.GetNumber(), Run: epoch.Life(e.GetRun())}
}

func configToWire(c epoch.Config) *shardpb.Config {
	if c.Version.Number == 0 {
		return nil
	}
	return &shardpb.Config{Version: c.Version.Number, By: uint32(c.Version.By), Shards: shardsToWire(c.Shards)}
}

// configFromWire is the zero value for nil.
func configFromWire(c *shardpb.Config) (epoch.Config, error) {
	if c == nil {
		return epoch.Config{}, nil
	}
	by, err := shardFromWire(c.GetBy())
	if err != nil {
		return epoch.Config{}, err
	}
	shards, err := shardsFromWire(c.GetShards())
	if err != nil {
		return epoch.Config{}, err
	}
	config := epoch.Config{Version: epoch.Version{Number: c.GetVersion(), By: by}, Shards: shards}
	return config, config.Validate()
}

func shardFromWire(id uint32) (epoch.ShardID, error) {
	if id > math.MaxUint16 {
		return 0, fmt.Errorf("shard %d, the highest is %d", id, math.MaxUint16)
	}
	return epoch.ShardID(id), nil
}

func shardsToWire(list []epoch.ShardID) (wire []uint32) {
	for _, s := range list {
		wire = append(wire, uint32(s))
	}
	return wire
}

func shardsFromWire(wire []uint32) (list []epoch.ShardID, err error) {
	if len(wire) > epoch.MaxShards {
		return nil, fmt.Errorf("%d shards, the limit is %d", len(wire), epoch.MaxShards)
	}
	for _, w := range wire {
		s, err := shardFromWire(w)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

func attemptToWire(a epoch.Attempt) *shardpb.Attempt {
	return &shardpb.Attempt{Number: a.Number, Run: uint64(a.Run)}
}

func attemptFromWire(a *shardpb.Attempt) epoch.Attempt {
	return epoch.Attempt{Number: a.GetNumber(), Run: epoch.Life(a.GetRun())}
}

func markToWire(m epoch.Mark) *shardpb.Mark {
	return &shardpb.Mark{Epoch: idToWire(m.Epoch), Shard: uint32(m.Shard), Config: configToWire(m.Config),
		Boundary: m.Boundary}
}

func markFromWire(w *shardpb.Mark) (epoch.Mark, error) {
	config, err := configFromWire(w.GetConfig())
	if err != nil {
		return epoch.Mark{}, err
	}
	shard, err := shardFromWire(w.GetShard())
	if err != nil {
		return epoch.Mark{}, err
	}
	m := epoch.Mark{Epoch: idFromWire(w.GetEpoch()), Shard: shard, Config: config, Boundary: w.GetBoundary()}
	return m, m.Validate()
}

func decisionToWire(d *epoch.Decision) *shardpb.Decision {
	if d == nil {
		return nil
	}
	return &shardpb.Decision{Epoch: idToWire(d.Epoch), Config: configToWire(d.Config), Without: shardsToWire(d.Without)}
}

// decisionFromWire is nil for nil.
func decisionFromWire(w *shardpb.Decision) (*epoch.Decision, error) {
	if w == nil {
		return nil, nil
	}
	config, err := configFromWire(w.GetConfig())
	if err == nil {
		err = config.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("decision: %w", err)
	}
	without, err := shardsFromWire(w.GetWithout())
	if err != nil {
		return nil, err
	}
	return &epoch.Decision{Epoch: idFromWire(w.GetEpoch()), Config: config, Without: without}, nil
}

// request is a message for a shard.
func request(group string, to epoch.ShardID, m epoch.Message) *shardpb.DeliverRequest {
	r := &shardpb.DeliverRequest{Group: group, Shard: uint32(to)}
	switch m := m.(type) {
	case epoch.Ask:
		r.Message = &shardpb.DeliverRequest_Ask{Ask: &shardpb.Ask{Round: m.Round, Config: configToWire(m.Config)}}
	case epoch.Prepare:
		r.Message = &shardpb.DeliverRequest_Prepare{Prepare: &shardpb.Prepare{Epoch: idToWire(m.Epoch), Life: uint64(m.Life),
			Version: m.Version.Number, By: uint32(m.Version.By)}}
	case epoch.Commit:
		r.Message = &shardpb.DeliverRequest_Commit{Commit: &shardpb.Commit{Epoch: idToWire(m.Epoch), Life: uint64(m.Life)}}
	case epoch.Abort:
		r.Message = &shardpb.DeliverRequest_Abort{Abort: &shardpb.Abort{Epoch: idToWire(m.Epoch), Life: uint64(m.Life)}}
	case epoch.Gather:
		r.Message = &shardpb.DeliverRequest_Gather{Gather: &shardpb.Gather{Attempt: attemptToWire(m.Attempt),
			After: idToWire(m.After)}}
	case epoch.Grant:
		r.Message = &shardpb.DeliverRequest_Grant{Grant: &shardpb.Grant{Attempt: attemptToWire(m.Attempt),
			Life: uint64(m.Life), Epoch: idToWire(m.Epoch)}}
	case epoch.Decide:
		r.Message = &shardpb.DeliverRequest_Decide{Decide: &shardpb.Decide{Attempt: attemptToWire(m.Attempt),
			Life: uint64(m.Life), Decision: decisionToWire(&m.Decision)}}
	case epoch.Settled:
		r.Message = &shardpb.DeliverRequest_Settled{Settled: &shardpb.Settled{Attempt: attemptToWire(m.Attempt),
			Life: uint64(m.Life), Seq: m.Seq, Epoch: idToWire(m.Epoch)}}
	}
	return r
}

// messageOf is the message of a request.
func messageOf(r *shardpb.DeliverRequest) (epoch.Message, error) {
	switch m := r.GetMessage().(type) {
	case *shardpb.DeliverRequest_Ask:
		config, err := configFromWire(m.Ask.GetConfig())
		return epoch.Ask{Round: m.Ask.GetRound(), Config: config}, err
	case *shardpb.DeliverRequest_Prepare:
		by, err := shardFromWire(m.Prepare.GetBy())
		return epoch.Prepare{Epoch: idFromWire(m.Prepare.GetEpoch()), Life: epoch.Life(m.Prepare.GetLife()),
			Version: epoch.Version{Number: m.Prepare.GetVersion(), By: by}}, err
	case *shardpb.DeliverRequest_Commit:
		return epoch.Commit{Epoch: idFromWire(m.Commit.GetEpoch()), Life: epoch.Life(m.Commit.GetLife())}, nil
	case *shardpb.DeliverRequest_Abort:
		return epoch.Abort{Epoch: idFromWire(m.Abort.GetEpoch()), Life: epoch.Life(m.Abort.GetLife())}, nil
	case *shardpb.DeliverRequest_Gather:
		return epoch.Gather{Attempt: attemptFromWire(m.Gather.GetAttempt()), After: idFromWire(m.Gather.GetAfter())}, nil
	case *shardpb.DeliverRequest_Grant:
		return epoch.Grant{Attempt: attemptFromWire(m.Grant.GetAttempt()), Life: epoch.Life(m.Grant.GetLife()),
			Epoch: idFromWire(m.Grant.GetEpoch())}, nil
	case *shardpb.DeliverRequest_Decide:
		d, err := decisionFromWire(m.Decide.GetDecision())
		if err == nil && d == nil {
			err = fmt.Errorf("message without a decision")
		}
		if err != nil {
			return nil, err
		}
		return epoch.Decide{Attempt: attemptFromWire(m.Decide.GetAttempt()), Life: epoch.Life(m.Decide.GetLife()),
			Decision: *d}, nil
	case *shardpb.DeliverRequest_Settled:
		return epoch.Settled{Attempt: attemptFromWire(m.Settled.GetAttempt()), Life: epoch.Life(m.Settled.GetLife()),
			Seq: m.Settled.GetSeq(), Epoch: idFromWire(m.Settled.GetEpoch())}, nil
	}
	return nil, fmt.Errorf("message %T is not known; upgrade the older node", r.GetMessage())
}

// response is an answer; nil is none.
func response(m epoch.Message) *shardpb.DeliverResponse {
	r := &shardpb.DeliverResponse{}
	switch m := m.(type) {
	case epoch.Answer:
		r.Answer = &shardpb.DeliverResponse_Answered{Answered: &shardpb.Answer{Round: m.Round, Life: uint64(m.Life),
			Last: idToWire(m.Last), Config: configToWire(m.Config), Acked: idToWire(m.Acked)}}
	case epoch.Ready:
		r.Answer = &shardpb.DeliverResponse_Ready{Ready: &shardpb.Ready{Epoch: idToWire(m.Epoch), Life: uint64(m.Life),
			Boundary: m.Boundary}}
	case epoch.Committed:
		r.Answer = &shardpb.DeliverResponse_Committed{Committed: &shardpb.Committed{Epoch: idToWire(m.Epoch),
			Life: uint64(m.Life), Acked: idToWire(m.Acked)}}
	case epoch.Refused:
		r.Answer = &shardpb.DeliverResponse_Refused{Refused: &shardpb.Refused{Epoch: idToWire(m.Epoch),
			Life: uint64(m.Life), Reason: string(m.Reason)}}
	case epoch.Report:
		report := &shardpb.Report{Attempt: attemptToWire(m.Attempt), Life: uint64(m.Life), Seq: m.Seq,
			Shown: idToWire(m.Shown), Floor: idToWire(m.Floor), After: idToWire(m.After), More: m.More,
			Settling: m.Settling, Decision: decisionToWire(m.Decision)}
		report.Marks = marksToWire(m.Marks)
		r.Answer = &shardpb.DeliverResponse_Report{Report: report}
	case epoch.Outdated:
		r.Answer = &shardpb.DeliverResponse_Outdated{Outdated: &shardpb.Outdated{Attempt: attemptToWire(m.Attempt)}}
	case epoch.Decided:
		r.Answer = &shardpb.DeliverResponse_Decided{Decided: &shardpb.Decided{Attempt: attemptToWire(m.Attempt),
			Life: uint64(m.Life), Epoch: idToWire(m.Epoch)}}
	}
	return r
}

// answerOf is the answer of a response; nil for none.
func answerOf(r *shardpb.DeliverResponse) (epoch.Message, error) {
	switch m := r.GetAnswer().(type) {
	case nil:
		return nil, nil
	case *shardpb.DeliverResponse_Answered:
		config, err := configFromWire(m.Answered.GetConfig())
		return epoch.Answer{Round: m.Answered.GetRound(), Life: epoch.Life(m.Answered.GetLife()),
			Last: idFromWire(m.Answered.GetLast()), Config: config, Acked: idFromWire(m.Answered.GetAcked())}, err
	case *shardpb.DeliverResponse_Ready:
		return epoch.Ready{Epoch: idFromWire(m.Ready.GetEpoch()), Life: epoch.Life(m.Ready.GetLife()),
			Boundary: m.Ready.GetBoundary()}, nil
	case *shardpb.DeliverResponse_Committed:
		return epoch.Committed{Epoch: idFromWire(m.Committed.GetEpoch()), Life: epoch.Life(m.Committed.GetLife()),
			Acked: idFromWire(m.Committed.GetAcked())}, nil
	case *shardpb.DeliverResponse_Refused:
		return epoch.Refused{Epoch: idFromWire(m.Refused.GetEpoch()), Life: epoch.Life(m.Refused.GetLife()),
			Reason: epoch.Refusal(untrusted.Reason(m.Refused.GetReason()))}, nil
	case *shardpb.DeliverResponse_Report:
		return reportFromWire(m.Report)
	case *shardpb.DeliverResponse_Outdated:
		return epoch.Outdated{Attempt: attemptFromWire(m.Outdated.GetAttempt())}, nil
	case *shardpb.DeliverResponse_Decided:
		return epoch.Decided{Attempt: attemptFromWire(m.Decided.GetAttempt()), Life: epoch.Life(m.Decided.GetLife()),
			Epoch: idFromWire(m.Decided.GetEpoch())}, nil
	}
	return nil, fmt.Errorf("answer %T is not known; upgrade the older node", r.GetAnswer())
}

func reportFromWire(w *shardpb.Report) (epoch.Message, error) {
	decision, err := decisionFromWire(w.GetDecision())
	if err != nil {
		return nil, err
	}
	r := epoch.Report{Attempt: attemptFromWire(w.GetAttempt()), Life: epoch.Life(w.GetLife()), Seq: w.GetSeq(),
		Shown: idFromWire(w.GetShown()), Floor: idFromWire(w.GetFloor()), After: idFromWire(w.GetAfter()), More: w.GetMore(),
		Settling: w.GetSettling(), Decision: decision}
	r.Marks, err = marksFromWire(w.GetMarks(), r.After)
	return r, err
}

func marksToWire(list []epoch.Mark) (wire []*shardpb.Mark) {
	for _, m := range list {
		wire = append(wire, markToWire(m))
	}
	return wire
}

// marksFromWire are marks that ascend, past an epoch.
func marksFromWire(wire []*shardpb.Mark, after epoch.ID) (list []epoch.Mark, err error) {
	if len(wire) > epoch.MaxReportMarks {
		return nil, fmt.Errorf("report of %d marks, the limit is %d", len(wire), epoch.MaxReportMarks)
	}
	for _, w := range wire {
		m, err := markFromWire(w)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	if !slices.IsSortedFunc(list, func(a, b epoch.Mark) int { return a.Epoch.Compare(b.Epoch) }) {
		return nil, fmt.Errorf("report whose marks do not ascend")
	}
	if len(list) > 0 && !after.Before(list[0].Epoch) {
		return nil, fmt.Errorf("report with marks that were not asked for")
	}
	return list, nil
}
