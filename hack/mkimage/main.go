// Command mkimage packs a directory into a container image without a container engine:
//
//	mkimage --name example.test/tool:1 --entrypoint /tool -o tool.tar DIRECTORY
//
// What it writes is an OCI image layout in a tar file, which `ctr images import`, `docker load` and `kind load
// image-archive` read. The image has one layer, of everything in the directory, owned by root and without times: the
// same content gives the same digests, and it prints that of the image. The layer is not compressed, because these
// images go from one directory of a machine to another.
//
// go-containerregistry is the well-known library for this. It writes archives only in Docker's own format, which lacks
// the manifest whose digest the chart names, and OCI layouts only as directories.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// list is a flag that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "mkimage:", err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	var image Image
	var out string
	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	flags.Var((*list)(&image.Names), "name", "`reference` of the image, with its tag; may be repeated")
	flags.Var((*list)(&image.Entrypoint), "entrypoint", "program to run, then its arguments; may be repeated")
	flags.Var((*list)(&image.Cmd), "cmd", "default argument; may be repeated")
	flags.Var((*list)(&image.Env), "env", "`NAME=value`; may be repeated")
	flags.StringVar(&image.User, "user", "", "`uid[:gid]` to run as (default root)")
	flags.StringVar(&out, "o", "", "`file` to write (required)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || out == "" || len(image.Names) == 0 {
		return errors.New("want --name REFERENCE, -o FILE and one directory; see --help")
	}
	image.Dir = flags.Arg(0)
	// Under another name first, so that an interrupted run leaves nothing that looks like an image.
	f, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	digest, err := image.Write(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("pack %s: %w", image.Dir, err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := vfs.OS.Rename(f.Name(), out); err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}
