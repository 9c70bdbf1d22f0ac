package demo

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/report"
	"github.com/slipstream-storage/slipstream/internal/workload"
)

var wayHeader = []string{"the way back", "one consistency group"}

// wayRows are the second act. What did not run is left out.
func (r *Results) wayRows() [][]string {
	var rows [][]string
	row := func(name, format string, args ...any) {
		rows = append(rows, []string{name, fmt.Sprintf(format, args...)})
	}
	if c := r.Comeback; c != nil {
		row("orders at site B meanwhile", "%d", c.OrdersAtB)
		row("site A yields: writes that it keeps and undoes", "%d, %s", c.TailWrites, bytes(c.TailBytes))
		row("lost orders that are in the kept tail", "%d of %d", c.Kept, len(r.Joint.Result.Lost))
		row("copied until site A follows", "%s", bytes(c.Copied))
		row("from the call to yield until site A follows", "%s", milliseconds(c.Followed))
		row("site A takes over again: primary nowhere for", "%s", milliseconds(c.Away))
		row("orders at site A in the end", "%d", c.Back.Orders)
		row("orders without stock movement, in the end", "%d", c.Back.OrdersWithoutStock)
		row("orders lost on the way back", "%d", c.Back.LostOrders)
	}
	return rows
}

func (r *Results) waySection() report.Section {
	return report.Section{
		Title: "The way back",
		Paragraphs: []string{
			"Site A came back, while the shop ran at site B. Site A yielded: what it had written and site B never had " +
				"was kept as snapshots and undone, by copying only what the two sites had written since the failure. Then " +
				"the group moved back to site A without loss. The kept tail was opened beside it, and has the orders that the " +
				"failure had taken.",
		},
		Table: &report.Table{Header: wayHeader, Rows: r.wayRows()},
	}
}

var earlierHeader = []string{"the shop at site B", fmt.Sprintf("%.0f s before", lookBack.Seconds()), "at the disaster"}

// earlierRows are the shop before the disaster, beside what the failover found.
func (r *Results) earlierRows() [][]string {
	e := r.Joint.Earlier
	if e == nil {
		return nil
	}
	row := func(name string, value func(workload.Result) string) []string {
		return []string{name, value(e.Result), value(r.Joint.Result)}
	}
	return [][]string{
		row("orders", func(s workload.Result) string { return fmt.Sprint(s.Orders) }),
		row("last order", func(s workload.Result) string { return fmt.Sprintf("no. %d", s.LastOrder) }),
		row("orders without stock movement", func(s workload.Result) string { return fmt.Sprint(s.OrdersWithoutStock) }),
		row("stock movements without order", func(s workload.Result) string { return fmt.Sprint(s.MovementsWithoutOrder) }),
		row("orders acknowledged by then that are missing", func(s workload.Result) string {
			return fmt.Sprint(s.LostOrders)
		}),
		{"orders that began later", fmt.Sprint(e.Later), "-"},
		row("findings of the databases' own checks", func(s workload.Result) string { return fmt.Sprint(len(s.Damage)) }),
		{"from the call to the opened view", milliseconds(e.Opened), "-"},
	}
}

func (r *Results) earlierSection() report.Section {
	return report.Section{
		Title: "Before the disaster",
		Paragraphs: []string{
			fmt.Sprintf("The copy keeps %.0f seconds of history. After the failure a view of it was opened as the shop was "+
				"%.0f seconds before. Nothing is copied for that. The view was mounted and both databases were checked, while "+
				"the shop ran on at site B and site A followed it.", historyKept.Seconds(), lookBack.Seconds()),
		},
		Table: &report.Table{Header: earlierHeader, Rows: r.earlierRows()},
	}
}

// bytes writes a size.
func bytes(n uint64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
