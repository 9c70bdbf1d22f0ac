package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Image is what an image is made of.
type Image struct {
	Names           []string // references with tags
	Dir             string   // content of its file system
	Entrypoint, Cmd []string
	Env             []string
	User            string
}

// Media types of the OCI image specification, version 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type config struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Config       configRuntime `json:"config"`
	RootFS       rootFS        `json:"rootfs"`
}

type configRuntime struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// epoch is the time of everything in an image.
var epoch = time.Unix(0, 0).UTC()

// Write writes the image as a tar file, and returns the digest of its manifest: the image is NAME@DIGEST wherever it is
// copied as it is.
func (i *Image) Write(w io.Writer) (string, error) {
	// The layer stands before its digest is known and is as large as the directory, so it goes to a file first.
	layer, err := os.CreateTemp("", "mkimage-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	hash := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, hash), i.Dir); err != nil {
		return "", err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", err
	}
	layerDescriptor := descriptor{MediaType: typeLayer, Digest: digest(hash.Sum(nil)), Size: size}

	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, i.Env...)
	configBlob, configDescriptor, err := blob(typeConfig, config{
		Architecture: runtime.GOARCH, OS: "linux",
		Config: configRuntime{User: i.User, Env: env, Entrypoint: i.Entrypoint, Cmd: i.Cmd, WorkingDir: "/"},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{layerDescriptor.Digest}},
	})
	if err != nil {
		return "", err
	}
	manifestBlob, manifestDescriptor, err := blob(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: configDescriptor, Layers: []descriptor{layerDescriptor},
	})
	if err != nil {
		return "", err
	}
	top := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, name := range i.Names {
		d := manifestDescriptor
		d.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
		top.Manifests = append(top.Manifests, d)
	}
	indexBlob, _, err := blob(typeIndex, top)
	if err != nil {
		return "", err
	}
	// Docker before version 25 reads this file instead of the index.
	dockerBlob, err := json.Marshal([]map[string]any{{
		"Config": blobPath(configDescriptor), "RepoTags": i.Names, "Layers": []string{blobPath(layerDescriptor)},
	}})
	if err != nil {
		return "", err
	}

	out := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: epoch}); err != nil {
			return "", err
		}
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", indexBlob},
		{"manifest.json", dockerBlob},
		{blobPath(configDescriptor), configBlob},
		{blobPath(manifestDescriptor), manifestBlob},
	} {
		if err := writeFile(out, f.name, int64(len(f.content)), bytes.NewReader(f.content)); err != nil {
			return "", err
		}
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	if err := writeFile(out, blobPath(layerDescriptor), size, layer); err != nil {
		return "", err
	}
	return manifestDescriptor.Digest, out.Close()
}

func digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

func blobPath(d descriptor) string { return "blobs/sha256/" + d.Digest[len("sha256:"):] }

func blob(mediaType string, content any) ([]byte, descriptor, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return nil, descriptor{}, err
	}
	sum := sha256.Sum256(text)
	return text, descriptor{MediaType: mediaType, Digest: digest(sum[:]), Size: int64(len(text))}, nil
}

func writeFile(out *tar.Writer, name string, size int64, content io.Reader) error {
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size,
		ModTime: epoch}); err != nil {
		return err
	}
	_, err := io.Copy(out, content)
	return err
}

// writeLayer writes a directory's content: directories, regular files and symbolic links. Hard links become files of
// their own.
func writeLayer(w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	// In lexical order.
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return writeEntry(out, path, filepath.ToSlash(name), info)
	})
	return errors.Join(err, out.Close())
}

func writeEntry(out *tar.Writer, path, name string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no mode", path)
	}
	header := &tar.Header{Name: name, Mode: int64(stat.Mode & 0o7777), ModTime: epoch}
	switch {
	case info.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
		return out.WriteHeader(header)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, target, 0o777
		return out.WriteHeader(header)
	case info.Mode().IsRegular():
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(out, f)
		return err
	}
	return fmt.Errorf("%s is neither a directory nor a file nor a symbolic link (%v)", path, info.Mode())
}
