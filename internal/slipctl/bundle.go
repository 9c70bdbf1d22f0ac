package slipctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/bundle"
	"github.com/slipstream-storage/slipstream/internal/kubesite"
	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/wordjson"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	// bundleTimeout bounds the collection from one node.
	bundleTimeout = 2 * time.Minute
	// maxReadBytes bounds what is read of a file or an answer of a node.
	maxReadBytes = 64 << 20
)

// metricsPorts are those of driver and replicator in the chart and of `slipctl site init`.
var metricsPorts = []string{"127.0.0.1:9811", "127.0.0.1:9812"}

// bundled is what the command takes from a node.
type bundled struct {
	file    string
	metrics []string
	logs    []string
}

func (c *cli) bundleCommand() *cobra.Command {
	var b bundled
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Write a support bundle: status, settings, journal headers, metrics and logs, without secrets",
		Long: `Write a support bundle, a tar.gz file.

It has the status and the settings of the groups, group.json and the headers of the journal's segments, the records of
the volumes, metrics, versions, and logs. It has no contents of volumes or journals, no keys, tokens and passwords. It
has names of groups, claims, nodes and addresses. What could not be collected is in problems.txt.

With --context it also has the objects of the operator, events, and the logs of the pods, of all nodes. It reads no
Secrets.`,
		Example: "  slipctl bundle\n  slipctl bundle --context site-a --file /tmp/site-a.tar.gz",
		Args:    frame.Args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.writeBundle(cmd.Context(), &b) },
	}
	cmd.Flags().StringVar(&b.file, "file", "", "`file` to write; - is standard output (default "+
		"slipstream-bundle-TIME.tar.gz)")
	cmd.Flags().StringSliceVar(&b.metrics, "metrics", metricsPorts, "`addresses` of the metrics of this node")
	cmd.Flags().StringSliceVar(&b.logs, "log", nil, "log `files` of this node (default *.log in the directory of the "+
		"site)")
	cmd.Flags().StringVar(&c.Here.Pool, "pool", "", "directory of the pool (default as for slipctl volume)")
	return cmd
}

func (c *cli) writeBundle(ctx context.Context, b *bundled) error {
	w, file, err := bundle.Create(b.file, c.Out, func(w *bundle.Writer) error { return c.collect(ctx, b, w) })
	if err != nil || file == "-" {
		return err
	}
	for _, problem := range w.Problems() {
		fmt.Fprintf(c.Err, "slipctl: not in the bundle: %s\n", problem)
	}
	return c.Say(frame.Fields{"file": file, "files": w.Files(), "problems": append([]string{}, w.Problems()...)},
		"%s: %s. Look at it before you pass it on.", file, words.Count(w.Files(), "file"))
}

// collect adds everything that can be had. Its error is one of writing.
func (c *cli) collect(ctx context.Context, b *bundled, w *bundle.Writer) error {
	parts := []func(context.Context, *bundle.Writer) error{c.bundleVersions, c.bundleGroups}
	if c.Kube.Set() {
		parts = append(parts, c.bundleCluster)
	} else {
		parts = append(parts, c.bundlePool, b.bundleMetrics, func(_ context.Context, w *bundle.Writer) error {
			return c.bundleLogs(b, w)
		})
	}
	for _, part := range parts {
		limit, cancel := context.WithTimeout(ctx, bundleTimeout)
		err := part(limit, w)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// bundleVersions says what wrote the bundle, and on which machine.
func (c *cli) bundleVersions(_ context.Context, w *bundle.Writer) error {
	host, _ := os.Hostname()
	about := frame.Fields{"slipctl": c.Version, "go": runtime.Version(), "host": host, "processors": runtime.NumCPU()}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		about["kernel"] = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	return w.JSON("about.json", about)
}

// bundleGroups adds the status and settings of all groups, and the views.
func (c *cli) bundleGroups(ctx context.Context, w *bundle.Writer) error {
	var groups, views any
	err := c.WithSidecar(ctx, frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		list, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
		if err != nil {
			return err
		}
		if groups, err = wordjson.Value(list); err != nil || c.Kube.Set() {
			return err
		}
		open, err := sidecar.ListViews(ctx, &sidecarpb.ListViewsRequest{})
		if err != nil {
			return err
		}
		views, err = wordjson.Value(open)
		return err
	})
	if err != nil {
		w.Problem("groups and views", err)
	}
	for name, value := range map[string]any{"groups.json": groups, "views.json": views} {
		if value == nil {
			continue
		}
		if err := w.JSON(name, value); err != nil {
			return err
		}
	}
	return nil
}

// bundlePool adds the records of the volumes, and of each group its group.json and the headers of its journal. It reads
// no image and no data of a journal.
func (c *cli) bundlePool(_ context.Context, w *bundle.Writer) error {
	records, err := c.PoolRecords()
	if err != nil {
		w.Problem("records of the pool", err)
	}
	if err := w.JSON("volumes.json", records); err != nil {
		return err
	}
	p, err := blockdev.OpenPool(vfs.OS, c.PoolDir(), blockdev.WhoReader)
	if err != nil {
		return nil // told above
	}
	groups := p.GroupsDir()
	if err := p.Close(); err != nil {
		w.Problem("pool", err)
	}
	dirs, err := os.ReadDir(groups)
	if err != nil {
		w.Problem("directories of the groups", err)
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		dir := filepath.Join(groups, d.Name())
		if err := bundleFile(w, "groups/"+d.Name()+"/group.json", filepath.Join(dir, "group.json")); err != nil {
			return err
		}
		var headers bytes.Buffer
		if err := journal.Dump(vfs.OS, filepath.Join(dir, "journal"), &headers,
			journal.DumpOptions{JSON: true, Segments: true}); err != nil {
			w.Problem("journal of group "+d.Name(), err)
		}
		if err := w.Text("groups/"+d.Name()+"/journal.json", headers.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// bundleMetrics adds what the programs of this node say of themselves. From this host they want no token.
func (b *bundled) bundleMetrics(ctx context.Context, w *bundle.Writer) error {
	for _, address := range b.metrics {
		text, err := readMetrics(ctx, address)
		if err != nil {
			w.Problem("metrics of "+address, err)
			continue
		}
		if err := w.Text("metrics/"+strings.ReplaceAll(address, ":", "-")+".txt", text); err != nil {
			return err
		}
	}
	return nil
}

func readMetrics(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, frame.Short)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	return io.ReadAll(io.LimitReader(response.Body, maxReadBytes))
}

// bundleLogs adds log files: those that were named, or those beside the pool of a site of `slipctl site init`.
func (c *cli) bundleLogs(b *bundled, w *bundle.Writer) error {
	files := b.logs
	if len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(filepath.Dir(c.PoolDir()), "*.log"))
	}
	for _, file := range files {
		if err := bundleFile(w, "logs/"+filepath.Base(file), file); err != nil {
			return err
		}
	}
	return nil
}

// bundleCluster adds what the API server has, and a bundle of each node.
func (c *cli) bundleCluster(ctx context.Context, w *bundle.Writer) error {
	cluster, err := kubesite.Open(kubesite.Options{Kubeconfig: c.Kube.Kubeconfig, Context: c.Kube.Context,
		Namespace: c.Kube.Namespace})
	if err != nil {
		w.Problem("cluster", err)
		return nil
	}
	return cluster.Collect(ctx, w)
}

// bundleFile adds a file of this node; of a long one the end.
func bundleFile(w *bundle.Writer, name, file string) error {
	text, err := readEnd(file)
	if err != nil {
		w.Problem(name, err)
		return nil
	}
	return w.Text(name, text)
}

func readEnd(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", file)
	case info.Size() > maxReadBytes:
		if _, err := f.Seek(-maxReadBytes, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxReadBytes))
}
