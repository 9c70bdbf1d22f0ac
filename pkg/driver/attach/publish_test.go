package attach

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
)

// TestSecondPublish is the second table of the specification's NodePublishVolume, row by row.
func TestSecondPublish(t *testing.T) {
	const ok, exists, failed = codes.OK, codes.AlreadyExists, codes.FailedPrecondition
	for mode, row := range map[capability.Mode][4]codes.Code{
		// T1=T2 P1=P2, T1=T2 P1!=P2, T1!=T2 P1=P2, T1!=T2 P1!=P2
		capabilitytest.SingleWriter: {ok, exists, failed, failed},
		capabilitytest.MultiWriter:  {ok, exists, ok, ok},
		capabilitytest.Writer:       {ok, exists, failed, failed},
		capabilitytest.Reader:       {ok, exists, failed, failed},
	} {
		for i, want := range row {
			otherPath, sameArgs := i >= 2, i%2 == 0
			t.Run(fmt.Sprintf("%s/other path %t/same arguments %t", mode, otherPath, sameArgs), func(t *testing.T) {
				if got := secondPublish(mode, otherPath, sameArgs); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}
