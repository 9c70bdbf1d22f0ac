package tcplisten

import (
	"context"
	"errors"
	"io"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Watch are a gRPC server's credentials that know their connection.
type Watch struct {
	credentials.TransportCredentials
	// Shaken, if set, is told how a handshake ended. A connection that said nothing is not one: it is a load balancer
	// that checks whether the port is open. It must not block.
	Shaken func(remote net.Addr, err error)
	// AdmitAll admits each connection that finished its handshake, if the handshake itself checks who calls. Otherwise
	// the server calls Admit.
	AdmitAll bool
}

// AuthInfo is what the handshake found out, with the connection that it was on.
type AuthInfo struct {
	credentials.AuthInfo
	conn net.Conn
}

// ServerHandshake implements credentials.TransportCredentials.
func (w Watch) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := w.TransportCredentials.ServerHandshake(conn)
	if w.Shaken != nil && !errors.Is(err, io.EOF) {
		w.Shaken(conn.RemoteAddr(), err)
	}
	if err == nil && w.AdmitAll {
		err = admit(conn)
	}
	if err != nil {
		return nil, nil, err
	}
	return secured, AuthInfo{info, conn}, nil
}

// Clone implements credentials.TransportCredentials.
func (w Watch) Clone() credentials.TransportCredentials {
	w.TransportCredentials = w.TransportCredentials.Clone()
	return w
}

// Admit admits the connection of a call; see Conn.Admit. It is nil for connections of other listeners.
func Admit(ctx context.Context) error {
	from, _ := peer.FromContext(ctx)
	if from == nil {
		return nil
	}
	if info, ok := from.AuthInfo.(AuthInfo); ok {
		return admit(info.conn)
	}
	return nil
}

func admit(conn net.Conn) error {
	if c, ok := conn.(*Conn); ok {
		return c.Admit()
	}
	return nil
}
