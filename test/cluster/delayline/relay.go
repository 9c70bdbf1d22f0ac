package main

import (
	"errors"
	"io"
	"os"
	"time"
)

// maxPacket is more than any packet has; devices with large receive offload hand over up to 64 KiB.
const maxPacket = 1 << 16

type packet struct {
	due  time.Time
	data []byte
}

// relay reads packets and writes each one back after delay, until a read fails. A packet that finds limit others
// waiting is dropped.
func relay(device io.ReadWriter, delay time.Duration, limit int) error {
	held := make(chan packet, limit)
	written := make(chan struct{})
	go func() {
		defer close(written)
		timer := time.NewTimer(0)
		defer timer.Stop()
		for p := range held {
			if wait := time.Until(p.due); wait > 0 {
				timer.Reset(wait)
				<-timer.C
			}
			// A packet that the kernel does not take is a lost packet.
			_, _ = device.Write(p.data)
		}
	}()
	defer func() {
		close(held)
		<-written
	}()
	buffer := make([]byte, maxPacket)
	for {
		n, err := device.Read(buffer)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		select {
		case held <- packet{time.Now().Add(delay), append([]byte(nil), buffer[:n]...)}:
		default:
		}
	}
}
