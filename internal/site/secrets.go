package site

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// Secrets describes the certificates of sites that are Kubernetes clusters:
//
//	<dir>/authority                    signs the links' certificates; all sites trust it
//	<dir>/<site>/authority             signs those of the site's nodes and controller, which no other site trusts
//	<dir>/<site>/link|node|controller  ca.crt, tls.crt, tls.key
//	<dir>/<site>/secrets.yaml          the same as Secrets: <name>-link-tls, <name>-node-tls, <name>-controller-tls
type Secrets struct {
	Dir       string
	Sites     []string
	Namespace string
	// Name is what the Secrets' names begin with.
	Name string
	// Renew writes new certificates in place of those that are there. The authorities stay.
	Renew bool
}

// Write makes what is missing, and returns the manifests' paths in the order of the sites. It can be repeated.
func (s Secrets) Write() ([]string, error) {
	links, err := authority(filepath.Join(s.Dir, "authority"), "Slipstream sites")
	if err != nil {
		return nil, err
	}
	var manifests []string
	for _, name := range s.Sites {
		dir := filepath.Join(s.Dir, name)
		cluster, err := authority(filepath.Join(dir, "authority"), "Slipstream nodes of "+name)
		if err != nil {
			return nil, fmt.Errorf("site %s: %w", name, err)
		}
		var text bytes.Buffer
		for _, c := range []struct {
			use, name string
			authority *tlsfiles.Authority
		}{{"link", name, links}, {"node", tlsfiles.NodeName, cluster}, {"controller", tlsfiles.ControllerName, cluster}} {
			files := filepath.Join(dir, c.use)
			if _, err := os.Stat(filepath.Join(files, tlsfiles.CertFile)); err != nil || s.Renew {
				if err := c.authority.IssueSite(files, c.name, nil, certificateValidity); err != nil {
					return nil, err
				}
			}
			if err := s.secret(&text, c.use, files); err != nil {
				return nil, err
			}
		}
		path := filepath.Join(dir, "secrets.yaml")
		if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
			return nil, err
		}
		// A file that was there keeps its mode.
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, err
		}
		manifests = append(manifests, path)
	}
	return manifests, nil
}

func authority(dir, name string) (*tlsfiles.Authority, error) {
	a, err := tlsfiles.NewAuthority(dir, name)
	if errors.Is(err, fs.ErrExist) {
		return tlsfiles.OpenAuthority(dir)
	}
	return a, err
}

// secret adds a Secret with a directory's files.
func (s Secrets) secret(text *bytes.Buffer, use, files string) error {
	if text.Len() > 0 {
		text.WriteString("---\n")
	}
	fmt.Fprintf(text,
		"apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s-%s-tls\n  namespace: %s\ntype: kubernetes.io/tls\ndata:\n",
		s.Name, use, s.Namespace)
	for _, file := range []string{tlsfiles.CAFile, tlsfiles.CertFile, tlsfiles.KeyFile} {
		b, err := os.ReadFile(filepath.Join(files, file))
		if err != nil {
			return err
		}
		fmt.Fprintf(text, "  %s: %s\n", file, base64.StdEncoding.EncodeToString(b))
	}
	return nil
}
