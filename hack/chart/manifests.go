package main

import (
	"bytes"
	"fmt"
)

// Manifests returns what deploy/manifests has: the chart rendered with a file of values, behind the namespace that it
// goes into. Its pods are privileged, which a namespace has to allow where Pod Security admission is on.
func Manifests(chartDir, valuesFile string) ([]byte, error) {
	values, err := readValues([]string{valuesFile}, nil)
	if err != nil {
		return nil, err
	}
	release := Release{Name: "slipstream", Namespace: "slipstream-system", KubeVersion: "v1.37.0"}
	objects, err := Render(chartDir, release, values)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `# Generated from deploy/charts/slipstream with values.yaml beside this file: run make generate.
apiVersion: v1
kind: Namespace
metadata:
  name: %s
  labels:
    pod-security.kubernetes.io/enforce: privileged
`, release.Namespace)
	out.Write(objects)
	return out.Bytes(), nil
}
