// Package host is what the driver does to its node: mounting, loop devices, making, checking and growing file systems,
// freezing, and where paths of the container runtime lead.
//
// It knows no CSI and no volumes: callers give it paths and devices. System groups the interfaces, so that tests put a
// machine in memory in their place; Linux returns the real one.
//
// Everything is safe for concurrent use. Two calls about one mount point or one loop device are the caller's to order.
package host
