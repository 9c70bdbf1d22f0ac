package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/workload"
)

// What the loads on file systems work with.
const (
	copiedBytes = 1 << 30
	smallFiles  = 20_000
	smallBytes  = 4 << 10
	readFile    = "read-me"
)

// filesStage are loads on ext4: large and small files, reads, and a database of one file.
func (e *env) filesStage() *stage {
	reads := func(depth int, cold bool) *comparison {
		name := fmt.Sprintf("ext4: 4 KiB random read of a file that is not cached, depth %d", depth)
		target := 0.9
		if !cold {
			name, target = "ext4: 4 KiB random read of a cached file, depth 1", 1
		}
		return &comparison{name: name, load: fileReads{depth, cold, e.deviceBytes}, targets: e.ownVariants(target)}
	}
	s := &stage{name: "files", comparisons: []*comparison{
		{name: "ext4: copy of 1 GiB and fsync", load: copyLoad{}, targets: e.ownVariants(e.target(0.4, 0.7))},
		{name: "ext4: untar of 20 000 small files and sync", load: untarLoad{}, targets: e.ownVariants(e.target(0.9, 0.95))},
		reads(1, false), reads(1, true), reads(16, true),
		{name: "SQLite, synchronous=FULL, 1 client", load: sqliteLoad{}, targets: e.ownVariants(e.target(0.9, 0.95))},
	}}
	s.variants, s.volumes = []variant{plain, driverPlain, replicated, off}, 1
	s.sizeBytes = copiedBytes + e.deviceBytes + 768<<20
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) error {
		return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
			o := bedOptions{name: "files", volumes: s.volumes, sizeBytes: s.sizeBytes, filesystem: true,
				dataset: func(mount string, _ int) error { return e.makeFiles(mount) }}
			beds, err := e.beds(ctx, pair, o, s.variants...)
			if err != nil {
				return err
			}
			return measure(ctx, beds)
		})
	}
	return s
}

// ownVariants are those without the peer product, which has no part in these loads.
func (e *env) ownVariants(target float64) map[variant]float64 {
	return map[variant]float64{replicated: target, off: targetOff}
}

// makeFiles makes the file for random reads.
func (e *env) makeFiles(mount string) error {
	f, err := os.Create(filepath.Join(mount, readFile))
	if err != nil {
		return err
	}
	_, err = writeNoise(f, e.deviceBytes)
	return errors.Join(err, f.Close())
}

// copyLoad writes a large file and syncs it.
type copyLoad struct{}

func (copyLoad) unit() string { return "MiB/s" }

func (copyLoad) takes() time.Duration { return 6 * time.Second }

func (copyLoad) prepare(_ context.Context, b *bed) error {
	return os.RemoveAll(filepath.Join(b.mounts[0], "copy"))
}

func (copyLoad) run(_ context.Context, b *bed, _ time.Duration, _ int) (sample, error) {
	began := time.Now()
	f, err := os.Create(filepath.Join(b.mounts[0], "copy"))
	if err != nil {
		return sample{}, err
	}
	_, err = writeNoise(f, copiedBytes)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return sample{}, err
	}
	mib := float64(copiedBytes) / (1 << 20)
	return sample{value: mib / time.Since(began).Seconds(), operations: mib, bytes: copiedBytes}, nil
}

// untarLoad unpacks an archive of small files, which is not on the volume, and syncs the file system.
type untarLoad struct{}

func (untarLoad) unit() string { return "files/s" }

func (untarLoad) takes() time.Duration { return 5 * time.Second }

func (untarLoad) prepare(_ context.Context, b *bed) error {
	return os.RemoveAll(filepath.Join(b.mounts[0], "tree"))
}

func (untarLoad) run(ctx context.Context, b *bed, _ time.Duration, _ int) (sample, error) {
	archive, err := os.CreateTemp("/dev/shm", "slipstream-bench-*.tar")
	if err != nil {
		return sample{}, err
	}
	defer os.Remove(archive.Name())
	tree := filepath.Join(b.mounts[0], "tree")
	if err := errors.Join(writeArchive(archive), archive.Close(), os.Mkdir(tree, 0o755)); err != nil {
		return sample{}, err
	}
	began := time.Now()
	if _, err := run(ctx, "tar", "-xf", archive.Name(), "-C", tree); err != nil {
		return sample{}, err
	}
	if err := syncFS(b.mounts[0]); err != nil {
		return sample{}, err
	}
	return sample{value: smallFiles / time.Since(began).Seconds(), operations: smallFiles,
		bytes: smallFiles * smallBytes}, nil
}

// writeArchive writes the small files, a hundred to a directory.
func writeArchive(w io.Writer) error {
	t := tar.NewWriter(w)
	content := make([]byte, smallBytes)
	for i := range smallFiles {
		for n := range content {
			content[n] = byte(i*31 + n*n)
		}
		h := &tar.Header{Name: fmt.Sprintf("%d/%d", i/100, i), Mode: 0o644, Size: smallBytes, Typeflag: tar.TypeReg}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	return t.Close()
}

// fileReads reads at random places of a file.
type fileReads struct {
	depth     int // processes with one request each
	cold      bool
	fileBytes int64
}

func (fileReads) unit() string { return "IOPS" }

// prepare has the file in the page cache, or nothing at all, which the caches below the volume are part of.
func (l fileReads) prepare(ctx context.Context, b *bed) error {
	if l.cold {
		if err := b.settle(ctx); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
	}
	f, err := os.Open(filepath.Join(b.mounts[0], readFile))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	return errors.Join(err, f.Close())
}

func (l fileReads) run(ctx context.Context, b *bed, d time.Duration, round int) (sample, error) {
	out, err := run(ctx, "fio", "--output-format=json", "--thread", "--group_reporting", "--direct=0", "--rw=randread",
		"--bs="+strconv.Itoa(kib4), "--size="+strconv.FormatInt(l.fileBytes, 10), "--time_based",
		fmt.Sprintf("--runtime=%dms", d.Milliseconds()), "--norandommap", "--randseed="+strconv.Itoa(round+1),
		"--invalidate=0", "--ioengine=psync", "--numjobs="+strconv.Itoa(l.depth), "--name=read",
		"--filename="+filepath.Join(b.mounts[0], readFile))
	if err != nil {
		return sample{}, err
	}
	return parseFio(out, fioLoad{pattern: "randread", blockSize: kib4})
}

// sqliteLoad is the shop of the demo with both databases on one volume. An order is two commits.
type sqliteLoad struct{}

func (sqliteLoad) unit() string { return "orders/s" }

func (sqliteLoad) dir(b *bed) string { return filepath.Join(b.mounts[0], "shop") }

func (l sqliteLoad) prepare(_ context.Context, b *bed) error {
	return errors.Join(os.RemoveAll(l.dir(b)), os.Mkdir(l.dir(b), 0o755))
}

func (l sqliteLoad) run(ctx context.Context, b *bed, d time.Duration, _ int) (sample, error) {
	shop, err := workload.Open(ctx, workload.SQLite, workload.Dirs{Stock: l.dir(b), Sales: l.dir(b)}, 1)
	if err != nil {
		return sample{}, err
	}
	details := string(make([]byte, 200))
	var orders int64
	began := time.Now()
	for time.Since(began) < d && err == nil {
		orders++
		err = shop.Place(ctx, 0, workload.Order{ID: orders, Item: int(orders * 7919 % 1000), Quantity: 1, Details: details})
	}
	took := time.Since(began)
	if err := errors.Join(err, shop.Close()); err != nil {
		return sample{}, err
	}
	return sample{value: float64(orders) / took.Seconds(), operations: float64(orders)}, nil
}
