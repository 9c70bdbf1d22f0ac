package tlsfiles

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// The names of the files that are written.
const (
	CAFile    = "ca.crt"
	CAKeyFile = "ca.key"
	CertFile  = "tls.crt"
	KeyFile   = "tls.key"
)

// The names that certificates are for inside a cluster, where the controller calls the nodes. They are no sites' names.
// All nodes share one, since the pods of a DaemonSet share their Secrets: a node proves that it is one of the
// cluster's, and says itself which.
const (
	ControllerName = "controller.csi.slipstream.dev"
	NodeName       = "node.csi.slipstream.dev"
)

const (
	authorityValidity = 10 * 365 * 24 * time.Hour
	// backdate allows for clocks that are behind at the other site.
	backdate = time.Hour
)

// Authority signs the certificates of sites. Its key lies in a file, for sites that have no certificate manager;
// its owner can pose as any site.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// NewAuthority creates an authority, valid for ten years, and writes ca.crt and ca.key (mode 0600) into dir, which is
// made when missing. An authority that is already there is an error that satisfies errors.Is with fs.ErrExist, and
// stays: replacing it would cut off every site it signed for.
func NewAuthority(dir, name string) (*Authority, error) {
	for _, f := range []string{CAFile, CAKeyFile} {
		path := filepath.Join(dir, f)
		if _, err := os.Lstat(path); err == nil {
			return nil, &fs.PathError{Op: "create authority", Path: path, Err: fs.ErrExist}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("create authority: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	a, err := NewTransientAuthority(name, time.Now(), authorityValidity)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate without its key would look like an authority that is there.
	keyPEM, err := encodeKey(a.key)
	if err != nil {
		return nil, err
	}
	if err := replaceFile(filepath.Join(dir, CAKeyFile), keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := replaceFile(filepath.Join(dir, CAFile), a.pem, 0o644); err != nil {
		return nil, err
	}
	return a, nil
}

// NewTransientAuthority creates an authority whose key is in memory only: what it has signed by the time it is
// forgotten is all that it ever signs.
func NewTransientAuthority(name string, now time.Time, validFor time.Duration) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create authority's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validFor),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &Authority{cert: template, key: key}
	der, err := a.sign(template, key.Public())
	if err != nil {
		return nil, fmt.Errorf("create authority's certificate: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("create authority's certificate: %w", err)
	}
	a.pem = encode("CERTIFICATE", der)
	return a, nil
}

// PEM returns the authority's certificate, as it stands in ca.crt.
func (a *Authority) PEM() []byte { return a.pem }

// OpenAuthority reads what NewAuthority wrote.
func OpenAuthority(dir string) (*Authority, error) {
	certFile, keyFile := filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile)
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("authority %s with key %s: %w", certFile, keyFile, err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", certFile, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !cert.IsCA {
		return nil, fmt.Errorf("%s is not an authority's certificate", certFile)
	}
	return &Authority{cert: cert, key: key, pem: certPEM}, nil
}

// IssueSite writes the files a site needs into dir, made when missing: ca.crt, tls.crt and tls.key (mode 0600),
// replacing those that are there. The certificate is for clients and servers; its first DNS name is the site's name,
// which is the site's identity to its peers, and hosts (DNS names or IP addresses) are added for other clients. It is
// not valid for longer than the authority.
//
// Hosts must not hold another site's name: a peer believes every name that it finds. Since the authority does not know
// which names are sites', that is the caller's to see to.
func (a *Authority) IssueSite(dir, site string, hosts []string, validFor time.Duration) error {
	cert, key, err := a.Issue(site, hosts, time.Now(), validFor)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("certificate of site %s: %w", site, err)
	}
	// A reader between these sees a pair that does not match, keeps what it has, and reads again at the next change.
	if err := replaceFile(filepath.Join(dir, CAFile), a.pem, 0o644); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, KeyFile), key, 0o600); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, CertFile), cert, 0o644)
}

// Issue is IssueSite without files: it returns what would be in tls.crt and tls.key.
func (a *Authority) Issue(site string, hosts []string, now time.Time,
	validFor time.Duration) (certPEM, keyPEM []byte, err error) {
	if err := checkSiteName(site); err != nil {
		return nil, nil, err
	}
	if validFor <= 0 {
		return nil, nil, fmt.Errorf("certificate of site %s: it would be valid for %v", site, validFor)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("key of site %s: %w", site, err)
	}
	notAfter := now.Add(validFor)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: site},
		NotBefore:   now.Add(-backdate),
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{site},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != site {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := a.sign(template, key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of site %s: %w", site, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return encode("CERTIFICATE", der), keyPEM, nil
}

// CheckSites says what is wrong with a site's name and those of its peers: names that no certificate can be for, and a
// site that is its own peer.
func CheckSites(site string, peers []string) error {
	if err := checkSiteName(site); err != nil {
		return err
	}
	for _, peer := range peers {
		if err := checkSiteName(peer); err != nil {
			return fmt.Errorf("peer: %w", err)
		}
		if peer == site {
			return fmt.Errorf("peer %s is this site itself; name the other sites as peers", peer)
		}
	}
	return nil
}

// checkSiteName refuses what x509's matching of names would not match, or would match to more than one name.
func checkSiteName(site string) error {
	if site == "" || len(site) > 253 || strings.Trim(site, ".-") != site || net.ParseIP(site) != nil {
		return fmt.Errorf("site name %q: want a DNS name of lower-case letters, digits, '-' and '.'", site)
	}
	for _, r := range site {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' {
			return fmt.Errorf("site name %q holds %q; want a DNS name of lower-case letters, digits, '-' and '.'", site, r)
		}
	}
	return nil
}

func (a *Authority) sign(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	return x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encode("PRIVATE KEY", der), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// replaceFile writes a file under another name first, so that a reader never sees half of it, nor a key with the mode
// of the file that was there before.
func replaceFile(path string, b []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = vfs.OS.Rename(f.Name(), path); err != nil {
		return err
	}
	return vfs.OS.SyncDir(filepath.Dir(path))
}
