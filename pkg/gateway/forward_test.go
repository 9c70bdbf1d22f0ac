package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// BenchmarkForward ships batches of 1 MiB, each acknowledged before the window of eight is full, to a node directly and
// through a gateway.
func BenchmarkForward(b *testing.B) {
	authority, err := tlsfiles.NewAuthority(b.TempDir(), "benchmark")
	if err != nil {
		b.Fatal(err)
	}
	certificate := func(site string) *tlsfiles.Source {
		dir := b.TempDir()
		if err := authority.IssueSite(dir, site, nil, time.Hour); err != nil {
			b.Fatal(err)
		}
		source, err := tlsfiles.OpenDir(dir)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { source.Close() })
		return source
	}
	siteA, siteB := certificate("site-a"), certificate("site-b")
	client := func(site string, tls *tlsfiles.Source) *link.Client {
		c, err := link.NewClient(link.ClientOptions{Site: site, TLS: tls})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c
	}
	node, stopNode := listen(b, "", link.ServerOptions{Site: "site-b", TLS: siteB, Node: "b1",
		Handler: link.HandlerFunc(acknowledge),
		Locate: func(*linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
			return &linkpb.LocateResponse{Holds: true}, nil
		}})
	b.Cleanup(stopNode)
	g := New(Options{Site: "site-b", Nodes: client("site-b", siteB)})
	g.Update(map[string]string{"b1": node})
	front, stopFront := listen(b, "", link.ServerOptions{Site: "site-b", TLS: siteB, Handler: g})
	b.Cleanup(stopFront)
	primary := client("site-a", siteA)
	for _, way := range []struct{ name, address string }{{"direct", node}, {"gateway", front}} {
		b.Run(way.name, func(b *testing.B) {
			stream, err := primary.Dial(context.Background(), "site-b", way.address)
			if err != nil {
				b.Fatal(err)
			}
			defer stream.Close()
			if err := stream.Send(&linkpb.ToSecondary{
				Message: &linkpb.ToSecondary_Hello{Hello: &linkpb.Hello{GroupId: "g"}}}); err != nil {
				b.Fatal(err)
			}
			const size, window = 1 << 20, 8
			records := bytes.Repeat([]byte{7}, size)
			b.SetBytes(size)
			sent, acknowledged := uint64(0), uint64(0)
			for b.Loop() {
				sent++
				if err := stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Batch{Batch: &linkpb.Batch{Sequence: sent,
					Records: records}}}); err != nil {
					b.Fatal(err)
				}
				for sent-acknowledged >= window {
					m, err := stream.Recv()
					if err != nil {
						b.Fatal(err)
					}
					acknowledged = m.GetAck().GetBatchSequence()
				}
			}
		})
	}
}

// acknowledge is a secondary that takes everything.
func acknowledge(s link.PeerStream) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if batch := m.GetBatch(); batch != nil {
			if err := s.Send(&linkpb.ToPrimary{
				Message: &linkpb.ToPrimary_Ack{Ack: &linkpb.Ack{BatchSequence: batch.Sequence}}}); err != nil {
				return err
			}
		}
	}
}
