package link

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

func TestReceiveHello(t *testing.T) {
	for name, tc := range map[string]struct {
		first *linkpb.ToSecondary
		wait  time.Duration
		code  codes.Code
	}{
		"Hello":       {&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: &linkpb.Hello{GroupId: "g"}}}, time.Hour, codes.OK},
		"a heartbeat": {&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Heartbeat{Heartbeat: &linkpb.Heartbeat{}}}, time.Hour, codes.InvalidArgument},
		"empty":       {&linkpb.ToSecondary{}, time.Hour, codes.InvalidArgument},
		"nothing":     {nil, time.Nanosecond, codes.DeadlineExceeded},
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
