package demo

import (
	"context"
	"sort"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// lagInterval is how often a group is asked how far its copy is behind.
const lagInterval = 50 * time.Millisecond

// LagSample is how far the copy was behind at one moment: a failure then would have lost so much.
type LagSample struct {
	At  time.Time
	Lag time.Duration
}

// lagWatch collects samples of one group until stop, or until its site dies.
type lagWatch struct {
	group   string
	cancel  context.CancelFunc
	running sync.WaitGroup
	samples []LagSample
}

func watchLag(ctx context.Context, s *testsite.Site, group string) (*lagWatch, error) {
	w := &lagWatch{group: group}
	ctx, w.cancel = context.WithCancel(ctx)
	stream, err := s.Sidecar.WatchGroup(ctx, &sidecarpb.WatchGroupRequest{Name: group,
		IntervalMillis: lagInterval.Milliseconds()})
	if err != nil {
		w.cancel()
		return nil, err
	}
	w.running.Go(func() {
		for {
			g, err := stream.Recv()
			if err != nil {
				return // stopped, or the site was killed: both end the watch
			}
			if g.LagSeconds == nil {
				continue // not known yet
			}
			w.samples = append(w.samples, LagSample{At: time.Now(),
				Lag: time.Duration(g.GetLagSeconds() * float64(time.Second))})
		}
	})
	return w, nil
}

// stop ends the watch and returns its samples. It can be repeated.
func (w *lagWatch) stop() []LagSample {
	w.cancel()
	w.running.Wait()
	return w.samples
}

// span is a stretch of time.
type span struct{ begin, end time.Time }

// RPO sums up samples of the lag under load.
type RPO struct {
	Samples  int
	P50, P99 time.Duration
}

// text is one of the lags for people; without a sample it is unknown, not zero.
func (r RPO) text(lag time.Duration) string {
	if r.Samples == 0 {
		return "unknown"
	}
	return milliseconds(lag)
}

// summarizeLag takes only samples within the spans: between them nothing is written and the lag says nothing.
func summarizeLag(samples []LagSample, spans []span) RPO {
	var lags []time.Duration
	for _, s := range samples {
		for _, within := range spans {
			if s.At.After(within.begin) && s.At.Before(within.end) {
				lags = append(lags, s.Lag)
				break
			}
		}
	}
	sort.Slice(lags, func(i, j int) bool { return lags[i] < lags[j] })
	return RPO{Samples: len(lags), P50: quantile(lags, 0.5), P99: quantile(lags, 0.99)}
}

// quantile of sorted values, by the nearest rank; 0 of nothing.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
