// Package sanity runs csi-sanity, the conformance suite of kubernetes-csi, and lifecycle tests against the CSI driver
// with real loop devices and mounts: the service code in this process, the built binary over its socket, and the
// controller's binary in front of those of nodes.
//
// It needs root, and holds only tests.
package sanity
