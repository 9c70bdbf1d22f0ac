package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// A node with many volumes.
const (
	scaleVolumes = 1000
	scaleStaged  = 200
	scaleGroups  = 50
	// scaleWatched is how many of the last creations are measured.
	scaleWatched = 100
)

// measureScale makes a thousand volumes in fifty groups, stages a fifth of them, and then lists volumes and restarts
// the driver and the replicator. The groups have no peer: what is measured is one node.
func (e *env) measureScale(ctx context.Context, p *piece) error {
	e.say("a node with %d volumes, %d of them staged, in %d groups", scaleVolumes, scaleStaged, scaleGroups)
	return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		site := pair.A
		name := fmt.Sprintf("node with %d volumes, %d staged, %d groups", scaleVolumes, scaleStaged, scaleGroups)
		add := func(what string, values []float64, unit string, atMost float64) {
			p.Rows = append(p.Rows, measured(name+": "+what, values, unit, atMost, ""))
		}
		var volumes []*testsite.Volume
		var millis []float64
		var before usage
		for i := range scaleVolumes {
			if i == scaleVolumes-scaleWatched {
				var err error
				if before, err = processUsage(site.Driver().Pid()); err != nil {
					return err
				}
			}
			parameters := testsite.Replicable()
			parameters["slipstream.dev/consistency-group"] = fmt.Sprintf("scale-%d", i%scaleGroups)
			parameters["slipstream.dev/journal-size"] = "64Mi"
			began := time.Now()
			v, err := site.CreateVolume(ctx, testsite.VolumeOptions{Name: fmt.Sprintf("scale-%d", i), SizeBytes: 16 << 20,
				Block: true, Parameters: parameters})
			if err != nil {
				return err
			}
			if i >= scaleVolumes-scaleWatched {
				millis = append(millis, float64(time.Since(began).Microseconds())/1000)
			}
			volumes = append(volumes, v)
		}
		after, err := processUsage(site.Driver().Pid())
		if err != nil {
			return err
		}
		add("CreateVolume", millis, "ms", 20)
		add("CPU of the driver for CreateVolume",
			[]float64{float64(after.minus(before).CPU.Microseconds()) / 1000 / scaleWatched}, "ms", 20)

		millis = nil
		for _, v := range volumes[:scaleStaged] {
			began := time.Now()
			if _, err := site.Mount(ctx, v); err != nil {
				return err
			}
			millis = append(millis, float64(time.Since(began).Microseconds())/1000)
		}
		add("stage and publish a volume", millis, "ms", 0)

		began := time.Now()
		listed, err := site.CountVolumes(ctx)
		if err == nil && listed != scaleVolumes {
			err = fmt.Errorf("the driver lists %d volumes of %d", listed, scaleVolumes)
		}
		if err != nil {
			return err
		}
		add("ListVolumes of all", []float64{float64(time.Since(began).Microseconds()) / 1000}, "ms", 0)

		began = time.Now()
		if err := site.Driver().Signal(syscall.SIGKILL); err != nil {
			return err
		}
		if err := site.Driver().Wait(startTimeout); err != nil {
			return err
		}
		if err := site.Start(ctx); err != nil {
			return err
		}
		add("restart of a killed driver", []float64{time.Since(began).Seconds()}, "s", 0)

		restart, err := restartReplicator(ctx, site, site.Path(volumes[0]))
		if err != nil {
			return err
		}
		add("restart of a killed replicator: from its start to the first write and flush", []float64{restart.Seconds()},
			"s", 0)
		for i, program := range []string{"driver", "replicator"} {
			_, peak, err := residentBytes([]*testsite.Process{site.Driver(), site.Replicator()}[i].Pid())
			if err != nil {
				return err
			}
			add("resident memory of the "+program+", peak since its restart", []float64{peak / (1 << 20)}, "MiB", 0)
		}
		return nil
	})
}
