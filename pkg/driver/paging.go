package driver

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// page is one page of a list that is sorted by id.
type page struct {
	limit int    // 0: no limit
	after string // ids up to here, and this one, were on earlier pages
}

// parsePage reads max_entries and starting_token. Errors are status errors: Aborted tells the CO to list from the
// beginning.
func parsePage(maxEntries int32, startingToken string) (page, error) {
	if maxEntries < 0 {
		return page{}, status.Errorf(codes.InvalidArgument, "max_entries %d is negative", maxEntries)
	}
	p := page{limit: int(maxEntries)}
	if startingToken != "" {
		var ok bool
		if p.after, ok = strings.CutPrefix(startingToken, plugin.ListTokenPrefix); !ok || p.after == "" {
			return page{}, status.Errorf(codes.Aborted, "starting_token %q is not one of this driver: list from the beginning",
				startingToken)
		}
	}
	return p, nil
}

// full reports whether n entries are all that the page may have.
func (p page) full(n int) bool { return p.limit > 0 && n >= p.limit }

// token is the starting_token of the page after the one that ends with id.
func (p page) token(id string) string { return plugin.ListTokenAfter(id) }
