// Command slipctl is a person's view and hand on a Slipstream site. See internal/slipctl.
package main

import (
	"os"

	"github.com/slipstream-storage/slipstream/internal/slipctl"
)

// version is set at build time.
var version = "unversioned"

func main() { os.Exit(slipctl.Main(version, os.Args[1:])) }
