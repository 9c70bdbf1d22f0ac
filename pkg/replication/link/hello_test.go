package link

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func helloWith(change func(*linkpb.Hello)) *linkpb.ToSecondary {
	h := &linkpb.Hello{GroupId: "g"}
	change(h)
	return &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: h}}
}

func TestReceiveHello(t *testing.T) {
	for name, tc := range map[string]struct {
		first *linkpb.ToSecondary
		wait  time.Duration
		code  codes.Code
	}{
		"Hello": {&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: &linkpb.Hello{GroupId: "g"}}},
			time.Hour, codes.OK},
		"a long name": {helloWith(func(h *linkpb.Hello) {
			h.GroupName = strings.Repeat("x", 254)
		}), time.Hour, codes.InvalidArgument},
		"an odd name": {helloWith(func(h *linkpb.Hello) { h.GroupName = "\x1b[2J" }), time.Hour, codes.InvalidArgument},
		"a long id": {helloWith(func(h *linkpb.Hello) {
			h.GroupId = strings.Repeat("x", 65)
		}), time.Hour, codes.InvalidArgument},
		"as large as it may be": {helloWith(func(h *linkpb.Hello) {
			for range core.MaxTimelines {
				h.Timelines = append(h.Timelines, &linkpb.Timeline{Id: strings.Repeat("x", 36), ForkOrdinal: 1 << 63,
					ForkedUnixNanos: -1})
			}
		}), time.Hour, codes.OK},
		"larger": {helloWith(func(h *linkpb.Hello) {
			h.Timelines = []*linkpb.Timeline{{Id: strings.Repeat("x", MaxHelloBytes)}}
		}), time.Hour, codes.InvalidArgument},
		"a heartbeat": {&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Heartbeat{Heartbeat: &linkpb.Heartbeat{}}},
			time.Hour, codes.InvalidArgument},
		"empty":   {&linkpb.ToSecondary{}, time.Hour, codes.InvalidArgument},
		"nothing": {nil, time.Nanosecond, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			primary, secondary, cut := Pipe()
			defer cut()
			if tc.first != nil {
				if err := primary.Send(tc.first); err != nil {
					t.Fatal(err)
				}
			}
			hello, err := receiveHello(secondary, tc.wait)
			if status.Code(err) != tc.code || (err == nil) != (hello.GetGroupId() == "g") {
				t.Errorf("%v, %v; want %v", hello, err, tc.code)
			}
		})
	}
}
