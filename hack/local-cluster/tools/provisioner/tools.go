//go:build tools

// Package provisioner names the one program of the local clusters that does not compile with the libraries of this
// Kubernetes version: external-provisioner v6.3.0 was written for those of 1.36. v6.4.0 needs a library that the Go
// module proxy does not have.
package provisioner

import _ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
