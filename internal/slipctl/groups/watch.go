package groups

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// watchGroup shows each status of one group as it comes: a line for each, as JSON a line and as YAML a document for
// each; on a terminal a running sync is a bar instead of lines.
func (c *cli) watchGroup(ctx context.Context, sidecar sidecarpb.SidecarClient, name string,
	interval time.Duration) error {
	return c.follow(ctx, sidecar, name, interval, c.watcher(name))
}

// watcher returns what follow calls with each status. Its end is called once, after the last.
func (c *cli) watcher(name string) *groupWatcher { return &groupWatcher{cli: c, name: name} }

type groupWatcher struct {
	cli   *cli
	name  string
	meter syncMeter
	bar   *syncBar
}

func (w *groupWatcher) status(g *sidecarpb.GroupStatus) error {
	now := time.Now()
	w.meter.observe(now, g)
	switch {
	case w.cli.Structured():
		return w.cli.ShowNext(g)
	case g.GetSyncTotalBytes() > 0 && frame.IsTerminal(w.cli.Out):
		if w.bar == nil {
			w.bar = newSyncBar(w.cli.Out, w.name, &w.meter)
		}
		w.bar.update(g)
		return nil
	}
	w.bar.end()
	w.bar = nil
	_, err := fmt.Fprintln(w.cli.Out, statusLine(now, g, w.meter.text()))
	return err
}

func (w *groupWatcher) end() { w.bar.end() }

// follow calls w with each status until the person, the replicator, or an error ends it.
func (c *cli) follow(ctx context.Context, sidecar sidecarpb.SidecarClient, name string, interval time.Duration,
	w *groupWatcher) error {
	defer w.end()
	stream, err := sidecar.WatchGroup(ctx, &sidecarpb.WatchGroupRequest{Name: name,
		IntervalMillis: interval.Milliseconds()})
	if err != nil {
		return err
	}
	for {
		g, err := stream.Recv()
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.status(g); err != nil {
			return err
		}
	}
}

// watchGroups shows all groups again and again: on a terminal as a table that is drawn anew, elsewhere as a line for
// each group, as JSON a line and as YAML a document for each round.
func (c *cli) watchGroups(ctx context.Context, sidecar sidecarpb.SidecarClient, interval time.Duration) error {
	meters := map[string]*syncMeter{}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, frame.Short)
		response, err := sidecar.ListGroups(call, &sidecarpb.ListGroupsRequest{})
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.showRound(time.Now(), response, meters); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// clearScreen moves to the top left corner of a terminal and deletes what is below.
const clearScreen = "\x1b[H\x1b[2J"

func (c *cli) showRound(now time.Time, response *sidecarpb.ListGroupsResponse, meters map[string]*syncMeter) error {
	if c.Structured() {
		return c.ShowNext(response)
	}
	progress := map[string]string{}
	for _, g := range response.GetGroups() {
		m := meters[g.GetName()]
		if m == nil {
			m = &syncMeter{}
			meters[g.GetName()] = m
		}
		m.observe(now, g)
		progress[g.GetName()] = m.text()
	}
	if frame.IsTerminal(c.Out) {
		fmt.Fprintf(c.Out, "%s%s, all groups of this site\n\n", clearScreen, now.Format(time.DateTime))
		if err := c.printGroups(response); err != nil {
			return err
		}
		for _, g := range response.GetGroups() {
			if text := progress[g.GetName()]; text != "" {
				fmt.Fprintf(c.Out, "\n%s: %s", g.GetName(), text)
			}
		}
		_, err := fmt.Fprintln(c.Out)
		return err
	}
	for _, g := range response.GetGroups() {
		if _, err := fmt.Fprintln(c.Out, statusLine(now, g, progress[g.GetName()])); err != nil {
			return err
		}
	}
	return nil
}

// statusLine is one line for logs and pipes.
func statusLine(now time.Time, g *sidecarpb.GroupStatus, progress string) string {
	line := fmt.Sprintf("%s  %s  %s  %s  lag %s  journal %s", now.Format("15:04:05.000"), g.GetName(),
		frame.OrDash(g.GetRole().Word()), stateText(g), lagCell(g, lagText(g)),
		frame.FormatBytes(uint64(max(g.GetJournalUsedBytes(), 0))))
	if progress != "" {
		line += "  " + progress
	}
	return line
}

// syncBar is the progress of an initial sync or resync.
type syncBar struct {
	progress *mpb.Progress
	bar      *mpb.Bar
}

func newSyncBar(w io.Writer, name string, meter *syncMeter) *syncBar {
	b := &syncBar{progress: mpb.New(mpb.WithOutput(w), mpb.WithWidth(48))}
	b.bar = b.progress.AddBar(0,
		mpb.PrependDecorators(decor.Name(name+" sync "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace),
			decor.Any(func(decor.Statistics) string { return " " + meter.speed() })))
	return b
}

func (b *syncBar) update(g *sidecarpb.GroupStatus) {
	b.bar.SetTotal(int64(g.GetSyncTotalBytes()), false)
	b.bar.SetCurrent(int64(g.GetSyncDoneBytes()))
}

// end leaves the bar on the screen and lets lines follow it. A nil bar has none.
func (b *syncBar) end() {
	if b == nil {
		return
	}
	b.bar.SetTotal(-1, true) // complete at what it is; Wait waits for that
	b.progress.Wait()
}
