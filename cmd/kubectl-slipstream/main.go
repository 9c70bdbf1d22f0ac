// Command kubectl-slipstream is the plugin for kubectl: status, coverage and actions of groups in Kubernetes. See
// internal/kubeplugin.
package main

import (
	"os"

	"github.com/slipstream-storage/slipstream/internal/kubeplugin"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unversioned"

func main() { os.Exit(kubeplugin.Main(version, os.Args[1:])) }
