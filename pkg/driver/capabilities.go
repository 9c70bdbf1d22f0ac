package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// ControllerCapabilities are those of the Controller service, the same on every node.
func ControllerCapabilities() *csi.ControllerGetCapabilitiesResponse {
	response, _ := (&controllerServer{}).ControllerGetCapabilities(context.Background(), nil) // has no way to fail
	return response
}

// PluginCapabilities are those of the plugin, the same on every node.
func PluginCapabilities() *csi.GetPluginCapabilitiesResponse {
	response, _ := (&identityServer{}).GetPluginCapabilities(context.Background(), nil) // has no way to fail
	return response
}

// NodeCapabilities are those of the Node service, the same on every node.
func NodeCapabilities() *csi.NodeGetCapabilitiesResponse {
	response, _ := (&nodeServer{}).NodeGetCapabilities(context.Background(), nil) // has no way to fail
	return response
}
