package slipctl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
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
	"github.com/slipstream-storage/slipstream/internal/wordjson"
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
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.writeBundle(cmd.Context(), &b) },
	}
	cmd.Flags().StringVar(&b.file, "file", "", "`file` to write; - is standard output (default "+
		"slipstream-bundle-TIME.tar.gz)")
	cmd.Flags().StringSliceVar(&b.metrics, "metrics", metricsPorts, "`addresses` of the metrics of this node")
	cmd.Flags().StringSliceVar(&b.logs, "log", nil, "log `files` of this node (default *.log in the directory of the "+
		"site)")
	cmd.Flags().StringVar(&c.here.pool, "pool", "", "directory of the pool (default as for slipctl volume)")
	return cmd
}

func (c *cli) writeBundle(ctx context.Context, b *bundled) error {
	now := time.Now().UTC()
	name := "slipstream-bundle-" + now.Format("20060102-150405")
	if b.file == "-" {
		_, err := c.collect(ctx, b, c.out, name, now)
		return err
	}
	file := cmp.Or(b.file, name+".tar.gz")
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already: choose another --file", file)
	}
	if err != nil {
		return err
	}
	w, err := c.collect(ctx, b, out, name, now)
	if err := errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	for _, problem := range w.Problems() {
		fmt.Fprintf(c.err, "slipctl: not in the bundle: %s\n", problem)
	}
	return c.say(fields{"file": file, "files": w.Files(), "problems": append([]string{}, w.Problems()...)},
		"%s: %d files. Look at it before you pass it on.", file, w.Files())
}

// collect writes everything that can be had. Its error is one of writing.
func (c *cli) collect(ctx context.Context, b *bundled, out io.Writer, name string,
	now time.Time) (*bundle.Writer, error) {
	w := bundle.New(out, name, now)
	parts := []func(context.Context, *bundle.Writer) error{c.bundleVersions, c.bundleGroups}
	if c.kube.set() {
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
			return w, err
		}
	}
	return w, w.Close()
}

// bundleVersions says what wrote the bundle, and on which machine.
func (c *cli) bundleVersions(_ context.Context, w *bundle.Writer) error {
	host, _ := os.Hostname()
	about := fields{"slipctl": c.version, "go": runtime.Version(), "host": host, "processors": runtime.NumCPU()}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		about["kernel"] = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	return bundleJSON(w, "about.json", about)
}

// bundleGroups adds the status and settings of all groups, and the views.
func (c *cli) bundleGroups(ctx context.Context, w *bundle.Writer) error {
	var groups, views any
	err := c.withSidecar(ctx, callTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		list, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
		if err != nil {
			return err
		}
		if groups, err = wordjson.Value(list); err != nil || c.kube.set() {
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
		if err := bundleJSON(w, name, value); err != nil {
			return err
		}
	}
	return nil
}

// bundlePool adds the records of the volumes, and of each group its group.json and the headers of its journal. It reads
// no image and no data of a journal.
func (c *cli) bundlePool(_ context.Context, w *bundle.Writer) error {
	records, err := c.poolRecords()
	if err != nil {
		w.Problem("records of the pool", err)
	}
	if err := bundleJSON(w, "volumes.json", records); err != nil {
		return err
	}
	p, err := blockdev.OpenPool(vfs.OS, c.poolDir(), blockdev.WhoReader)
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
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
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
		files, _ = filepath.Glob(filepath.Join(filepath.Dir(c.poolDir()), "*.log"))
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
	cluster, err := kubesite.Open(kubesite.Options{Kubeconfig: c.kube.kubeconfig, Context: c.kube.context,
		Namespace: c.kube.namespace})
	if err != nil {
		w.Problem("cluster", err)
		return nil
	}
	return cluster.Collect(ctx, []string{"slipctl", "bundle", "--file", "-"}, func(part kubesite.Collected) error {
		switch {
		case part.Err != nil:
			w.Problem(part.Name, part.Err)
			return nil
		case part.Archive:
			return w.Bundle(part.Name, part.Content)
		}
		return w.Text(part.Name, part.Content)
	})
}

func bundleJSON(w *bundle.Writer, name string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		w.Problem(name, err)
		return nil
	}
	return w.Text(name, append(text, '\n'))
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
