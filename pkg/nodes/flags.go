package nodes

import (
	"errors"
	"flag"
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
)

// Flags are how a program is told of the nodes. Use Add.
type Flags struct {
	// Retired are nodes that are gone for good.
	Retired []string
	// Kubeconfig is the file for the API server; empty: the account of the pod.
	Kubeconfig string
	port       string
	list       string
	service    string
}

// Add adds the flags. port is the name of the port of the nodes' pods that is meant; prefix stands before each help
// text; retirement says what --retired-node means to the program.
func (f *Flags) Add(flags *flag.FlagSet, port, prefix, retirement string) {
	f.port = port
	flags.StringVar(&f.list, "nodes", "", prefix+"the nodes as name=host:port,..., if they do not come from Kubernetes")
	flags.StringVar(&f.service, "node-service", "", prefix+"namespace/name of the headless Service over the node pods; "+
		"its port named "+port+" is used, or its only port")
	flags.StringVar(&f.Kubeconfig, "kubeconfig", "", prefix+"kubeconfig for the API server; default: the account of "+
		"the pod")
	flags.Func("retired-node", prefix+"name of a node that is gone for good: "+retirement+"; can be repeated",
		func(name string) error {
			if name == "" {
				return errors.New("a name is missing")
			}
			f.Retired = append(f.Retired, name)
			return nil
		})
}

// Given returns one of these flags that was given, or "".
func Given(flags *flag.FlagSet) (name string) {
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "nodes", "node-service", "kubeconfig", "retired-node":
			name = f.Name
		}
	})
	return name
}

// Source is what the flags say. It makes no call yet.
func (f *Flags) Source() (Source, error) {
	switch {
	case (f.list == "") == (f.service == ""):
		return nil, errors.New("one of --node-service and --nodes has to say which nodes there are; see --help")
	case f.list != "":
		source, err := ParseStatic(f.list)
		if err != nil {
			return nil, fmt.Errorf("--nodes: %w", err)
		}
		return source, nil
	}
	// Without a file this is the pod's own service account.
	config, err := clientcmd.BuildConfigFromFlags("", f.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--node-service: how to reach the API server: %w", err)
	}
	source, err := NewKubernetes(config, f.service, f.port)
	if err != nil {
		return nil, fmt.Errorf("--node-service: %w", err)
	}
	return source, nil
}
