// Command nodessh is as much of an SSH server as Kubernetes' end-to-end tests want on a node: it runs one command a
// session, as the user that runs it, for the holder of one key. The tests stop and start the kubelet through it. A
// Debian package would bring a server for the whole machine with it, and its account files.
//
//	nodessh keygen FILE           make a key in FILE and FILE.pub
//	nodessh serve ADDRESS FILE.pub   serve; commands have the environment of this process
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/crypto/ssh"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "keygen":
		err = keygen(args[1])
	case len(args) == 3 && args[0] == "serve":
		err = serve(args[1], args[2])
	default:
		err = errors.New("want: keygen FILE, or serve ADDRESS FILE.pub")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nodessh:", err)
		os.Exit(1)
	}
}

func keygen(path string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "nodessh")
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, pem.EncodeToMemory(block), 0o600),
		os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(key), 0o600))
}

func serve(address, authorized string) error {
	text, err := os.ReadFile(authorized)
	if err != nil {
		return err
	}
	want, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return fmt.Errorf("%s: %w", authorized, err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), want.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	_, private, err := ed25519.GenerateKey(rand.Reader) // the tests do not look at it
	if err != nil {
		return err
	}
	host, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	config.AddHostKey(host)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			if err := connection(conn, config); err != nil {
				fmt.Fprintf(os.Stderr, "nodessh: %s: %v\n", conn.RemoteAddr(), err)
			}
		}()
	}
}

func connection(conn net.Conn, config *ssh.ServerConfig) error {
	defer conn.Close()
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return err
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for offer := range channels {
		if offer.ChannelType() != "session" {
			_ = offer.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		channel, requests, err := offer.Accept()
		if err != nil {
			return err
		}
		go session(channel, requests)
	}
	return nil
}

// session runs the command of an exec request (RFC 4254, section 6.5) and refuses all others, a shell and a terminal
// among them.
func session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for request := range requests {
		var command struct{ Line string }
		if request.Type != "exec" || ssh.Unmarshal(request.Payload, &command) != nil {
			_ = request.Reply(false, nil)
			continue
		}
		_ = request.Reply(true, nil)
		cmd := exec.Command("sh", "-c", command.Line)
		cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
		var status struct{ Code uint32 }
		if err := cmd.Run(); err != nil {
			status.Code = 255
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 {
				status.Code = uint32(exit.ExitCode())
			}
		}
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(status))
		return
	}
}
