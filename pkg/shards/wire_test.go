package shards

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// TestMessagesSurviveTheWire has every message come back as it was.
func TestMessagesSurviveTheWire(t *testing.T) {
	id := epoch.ID{Number: 1 << 40, Run: 1 << 63}
	config := epoch.Config{Version: epoch.Version{Number: 3, By: 2}, Shards: []epoch.ShardID{0, 2, 65535}}
	decision := epoch.Decision{Epoch: id, Config: config, Without: []epoch.ShardID{2}}
	attempt := epoch.Attempt{Number: 7, Run: 1<<64 - 1}
	for _, m := range []epoch.Message{
		epoch.Ask{Round: 1, Config: config}, epoch.Ask{Round: 2},
		epoch.Prepare{Epoch: id, Life: 5, Version: config.Version},
		epoch.Commit{Epoch: id, Life: 5}, epoch.Abort{Epoch: id, Life: 5}, epoch.Gather{Attempt: attempt},
		epoch.Grant{Attempt: attempt, Life: 5, Epoch: id}, epoch.Decide{Attempt: attempt, Life: 5, Decision: decision},
		epoch.Settled{Attempt: attempt, Life: 5, Seq: 6, Epoch: id},
	} {
		var r shardpb.DeliverRequest
		again(t, request("shop", 2, m), &r)
		if got, err := messageOf(&r); err != nil || !reflect.DeepEqual(got, m) || r.Group != "shop" || r.Shard != 2 {
			t.Errorf("%T: %+v, %v; want %+v", m, got, err, m)
		}
	}
	mark := epoch.Mark{Epoch: id, Shard: 2, Config: config, Boundary: 9}
	for _, m := range []epoch.Message{
		epoch.Answer{Round: 1, Life: 5, Last: id, Config: config, Acked: id}, epoch.Ready{Epoch: id, Life: 5, Boundary: 9},
		epoch.Committed{Epoch: id, Life: 5, Acked: id}, epoch.Refused{Epoch: id, Life: 5, Reason: epoch.RefusedOld},
		epoch.Report{Attempt: attempt, Life: 5, Seq: 6, Shown: id, Floor: epoch.ID{Number: 3, Run: 4},
			Marks: []epoch.Mark{mark}, More: true, Settling: true, Decision: &decision},
		epoch.Report{Attempt: attempt}, epoch.Outdated{Attempt: attempt},
		epoch.Decided{Attempt: attempt, Life: 5, Epoch: id},
	} {
		var r shardpb.DeliverResponse
		again(t, response(m), &r)
		if got, err := answerOf(&r); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: %+v, %v; want %+v", m, got, err, m)
		}
	}
	if m, err := answerOf(response(nil)); m != nil || err != nil {
		t.Errorf("no answer: %v, %v", m, err)
	}
}

func again(t *testing.T, from, to proto.Message) {
	t.Helper()
	data, err := proto.Marshal(from)
	if err == nil {
		err = proto.Unmarshal(data, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestWrongMessages has what no node sends: it is refused, and nothing is decided by it.
func TestWrongMessages(t *testing.T) {
	backwards := &shardpb.Config{Version: 1, Shards: []uint32{2, 1}}
	for what, r := range map[string]*shardpb.DeliverRequest{
		"no message":          {},
		"shards not in order": {Message: &shardpb.DeliverRequest_Ask{Ask: &shardpb.Ask{Config: backwards}}},
		"a shard too high": {Message: &shardpb.DeliverRequest_Ask{Ask: &shardpb.Ask{
			Config: &shardpb.Config{Version: 1, Shards: []uint32{1 << 20}}}}},
		"no decision": {Message: &shardpb.DeliverRequest_Decide{Decide: &shardpb.Decide{}}},
		"a decision without shards": {Message: &shardpb.DeliverRequest_Decide{Decide: &shardpb.Decide{
			Decision: &shardpb.Decision{}}}},
	} {
		if m, err := messageOf(r); err == nil {
			t.Errorf("%s: taken as %+v", what, m)
		}
	}
	many := &shardpb.Report{}
	for range epoch.MaxReportMarks + 1 {
		many.Marks = append(many.Marks, &shardpb.Mark{})
	}
	for what, r := range map[string]*shardpb.Report{
		"too many marks": many, "a mark of nothing": {Marks: []*shardpb.Mark{{}}},
	} {
		if m, err := answerOf(&shardpb.DeliverResponse{Answer: &shardpb.DeliverResponse_Report{Report: r}}); err == nil {
			t.Errorf("%s: taken as %+v", what, m)
		}
	}
}
