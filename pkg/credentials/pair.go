package credentials

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

const (
	// settle is how long a step is left alone: longer than a kubelet takes to show a pod a changed Secret.
	settle = time.Hour
	// renewAt is the part of the validity that is left when a pair is renewed.
	renewAt = 3
)

// side is what one Secret has. Everything is PEM, as in the Secret.
type side struct {
	ca, cert, key     []byte
	nextCert, nextKey []byte
	changed           time.Time // of the last step
}

// pair are the two sides' Secrets; nil for one that is not there.
type pair struct{ node, controller *side }

// step names what plan did.
type step string

const (
	none     step = ""
	made     step = "made new certificates"
	prepared step = "prepared the next certificates"
	switched step = "switched to the next certificates"
	pruned   step = "gave up the previous authority"
)

// plan returns what the Secrets should be, and which step that is. With none the pair is returned as it was.
func plan(p pair, now time.Time, validity time.Duration) (pair, step, error) {
	if !p.fits(now) {
		fresh, err := issue(now, validity)
		return fresh, made, err
	}
	settled := now.Sub(p.node.changed) >= settle && now.Sub(p.controller.changed) >= settle
	switch {
	case p.ready(now):
		if !settled {
			return p, none, nil
		}
		advance := func(s *side) *side { return &side{ca: s.ca, cert: s.nextCert, key: s.nextKey, changed: now} }
		return pair{advance(p.node), advance(p.controller)}, switched, nil
	case p.node.nextCert != nil || p.controller.nextCert != nil, p.due(now, validity):
		// The first of them: a step that was broken off, so that only one side is prepared, or has switched.
		next, err := issue(now, validity)
		if err != nil {
			return p, none, err
		}
		// Trust is only added as long as a pod may show what the Secrets had before.
		ca := append(p.authorities(func(one []byte) bool { return !settled || p.signed(one, now) }), next.node.ca...)
		prepare := func(s, n *side) *side {
			return &side{ca: ca, cert: s.cert, key: s.key, nextCert: n.cert, nextKey: n.key, changed: now}
		}
		return pair{prepare(p.node, next.node), prepare(p.controller, next.controller)}, prepared, nil
	}
	needed := p.authorities(func(one []byte) bool { return p.signed(one, now) })
	if !settled || bytes.Equal(p.node.ca, needed) && bytes.Equal(p.controller.ca, needed) {
		return p, none, nil
	}
	prune := func(s *side) *side { return &side{ca: needed, cert: s.cert, key: s.key, changed: now} }
	return pair{prune(p.node), prune(p.controller)}, pruned, nil
}

// issue makes a pair of a new authority.
func issue(now time.Time, validity time.Duration) (pair, error) {
	authority, err := tlsfiles.NewTransientAuthority("Slipstream nodes and controller", now, validity)
	if err != nil {
		return pair{}, err
	}
	var p pair
	for name, s := range map[string]**side{tlsfiles.NodeName: &p.node, tlsfiles.ControllerName: &p.controller} {
		cert, key, err := authority.Issue(name, nil, now, validity)
		if err != nil {
			return pair{}, err
		}
		*s = &side{ca: authority.PEM(), cert: cert, key: key, changed: now}
	}
	return p, nil
}

// fits reports whether the sides trust what the other one shows now.
func (p pair) fits(now time.Time) bool {
	return p.node != nil && p.controller != nil &&
		trusts(p.controller.ca, p.node.cert, p.node.key, tlsfiles.NodeName, now) &&
		trusts(p.node.ca, p.controller.cert, p.controller.key, tlsfiles.ControllerName, now)
}

// ready reports whether both may show their next certificates: each trusts the other's.
func (p pair) ready(now time.Time) bool {
	return trusts(p.controller.ca, p.node.nextCert, p.node.nextKey, tlsfiles.NodeName, now) &&
		trusts(p.node.ca, p.controller.nextCert, p.controller.nextKey, tlsfiles.ControllerName, now)
}

// due reports whether one of the certificates has little of its validity left.
func (p pair) due(now time.Time, validity time.Duration) bool {
	for _, s := range []*side{p.node, p.controller} {
		if cert := leaf(s.cert, s.key); cert == nil || cert.NotAfter.Sub(now) < validity/renewAt {
			return true
		}
	}
	return false
}

// authorities are those that either side trusts and that keep wants, in the order of the Secrets.
func (p pair) authorities(keep func(one []byte) bool) []byte {
	var list []byte
	for rest := bytes.Join([][]byte{p.node.ca, p.controller.ca}, nil); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return list
		}
		if one := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}); !bytes.Contains(list, one) &&
			keep(one) {
			list = append(list, one...)
		}
	}
}

// signed reports whether an authority has signed what one of the sides shows.
func (p pair) signed(authority []byte, now time.Time) bool {
	return trusts(authority, p.node.cert, p.node.key, tlsfiles.NodeName, now) ||
		trusts(authority, p.controller.cert, p.controller.key, tlsfiles.ControllerName, now)
}

// trusts reports whether a process with these authorities accepts the certificate for name. A missing certificate is
// accepted for no name.
func trusts(ca, cert, key []byte, name string, now time.Time) bool {
	certificate := leaf(cert, key)
	pool := x509.NewCertPool()
	if certificate == nil || !pool.AppendCertsFromPEM(ca) {
		return false
	}
	_, err := certificate.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// leaf is a certificate that has its key; nil where the two do not belong together or are no such thing.
func leaf(cert, key []byte) *x509.Certificate {
	loaded, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil
	}
	return loaded.Leaf
}
