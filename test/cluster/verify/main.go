// Command verify is the load of the cluster tests: it writes blocks to a file or a block device, flushes, reads back,
// and ends with an error at the first call that fails or the first byte that is not what it wrote.
//
//	verify --file /data/blocks --size 32Mi
//
// Once a second it prints a line: how much it has done and how long its slowest call took. On SIGTERM it reads
// everything once more and prints a last line that begins with "done".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("FAILED:", err)
		fmt.Fprintln(os.Stderr, "verify:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	path := flags.String("file", "", "`path` of the file or block device (required); a file is made")
	size := flags.String("size", "16Mi", "`bytes` that are written, with Ki, Mi or Gi")
	block := flags.Int("block", 4096, "`bytes` of a write")
	flush := flags.Int("flush-every", 16, "`writes` between flushes")
	pause := flags.Duration("pause", 0, "`time` without a call after a flush: what is tested may need the machine, too")
	seed := flags.Uint64("seed", 1, "of the order of writes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	bytes, err := parseSize(*size)
	if err != nil {
		return fmt.Errorf("--size %q: %w", *size, err)
	}
	if *path == "" || *flush < 1 || *block < headerBytes || bytes < int64(*block) {
		return fmt.Errorf(
			"want --file, --flush-every of at least 1, --block of at least %d and --size of at least a block", headerBytes)
	}
	f, err := os.OpenFile(*path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l := newLoad(f, int(bytes/int64(*block)), *block, *flush, *seed)
	l.pause = *pause
	err = l.run(ctx, os.Stdout)
	return errors.Join(err, f.Close())
}

func parseSize(s string) (int64, error) {
	factor := int64(1)
	for suffix, f := range map[string]int64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, factor = rest, f
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n * factor, err
}
