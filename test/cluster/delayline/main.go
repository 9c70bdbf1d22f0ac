// Command delayline holds every packet of a network device back for a while, where the kernel has no netem. It makes
// the device, reads what is routed into it, and writes each packet back when its time has come, in the order of
// arrival.
//
// It delays, and nothing else: no jitter, no loss, no limit but the length of its queue, behind which packets are
// dropped as a router would. It ends with the device on SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "delayline:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("delayline", flag.ContinueOnError)
	name := flags.String("device", "delay", "`name` of the device to make")
	delay := flags.Duration("delay", 0, "how long a packet stays (required)")
	queue := flags.Int("queue", 1<<16, "`packets` that may be held at a time")
	pidFile := flags.String("pid-file", "", "`file` to write the process id to when the device is there")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *delay <= 0 || *queue <= 0 || flags.NArg() > 0 {
		return errors.New("want --delay and --queue of more than nothing and no arguments")
	}
	device, err := openTUN(*name)
	if err != nil {
		return fmt.Errorf("make device %s: %w", *name, err)
	}
	defer device.Close()
	if *pidFile != "" {
		if err := os.WriteFile(*pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, func() { device.Close() })
	err = relay(device, *delay, *queue)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// openTUN makes a device that carries IP packets without a header of its own, and takes it up.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := up(name); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

func up(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
