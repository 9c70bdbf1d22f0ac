package driver

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

// guardedCalls are the calls that act on a volume: while another one does, they are told to come back.
var guardedCalls = map[string]func(h *node, id string) proto.Message{
	"Controller/CreateVolume": func(*node, string) proto.Message {
		return createReq("v", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	},
	"Controller/ControllerModifyVolume": func(_ *node, id string) proto.Message {
		return &csi.ControllerModifyVolumeRequest{VolumeId: id,
			MutableParameters: map[string]string{parameter.KeyReplication: parameter.ReplicationOff}}
	},
	"Controller/DeleteVolume": func(_ *node, id string) proto.Message { return &csi.DeleteVolumeRequest{VolumeId: id} },
	"Controller/CreateSnapshot": func(_ *node, id string) proto.Message {
		return &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id}
	},
	"GroupController/CreateVolumeGroupSnapshot": func(_ *node, id string) proto.Message {
		return &csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{id}}
	},
	"Node/NodeStageVolume": func(h *node, id string) proto.Message {
		return &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: h.staging(),
			VolumeCapability: capabilitytest.Mount(capabilitytest.Writer, "")}
	},
	"Node/NodeUnstageVolume": func(h *node, id string) proto.Message {
		return &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: h.staging()}
	},
	"Node/NodePublishVolume": func(h *node, id string) proto.Message {
		return &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: h.staging(), TargetPath: h.target("a"),
			VolumeCapability: capabilitytest.Mount(capabilitytest.Writer, "")}
	},
	"Node/NodeUnpublishVolume": func(h *node, id string) proto.Message {
		return &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: h.target("a")}
	},
	"Node/NodeExpandVolume": func(h *node, id string) proto.Message {
		return &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: h.staging(),
			CapacityRange: &csi.CapacityRange{RequiredBytes: 32 * mib}}
	},
}

// freeCalls change nothing, or are about no volume: another call's work on a volume is nothing to them. The first group
// says what is known of a volume, and most of all of one that a call hangs on.
var freeCalls = map[string]func(h *node, id string) proto.Message{
	"Node/NodeGetVolumeStats": func(h *node, id string) proto.Message {
		return &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: h.staging()}
	},
	"Node/NodeGetVolumeHealth": func(_ *node, id string) proto.Message {
		return &csi.NodeGetVolumeHealthRequest{VolumeId: id}
	},
	"Controller/ControllerGetVolume": func(_ *node, id string) proto.Message {
		return &csi.ControllerGetVolumeRequest{VolumeId: id}
	},
	"Controller/ControllerGetVolumeHealth": func(_ *node, id string) proto.Message {
		return &csi.ControllerGetVolumeHealthRequest{VolumeId: id}
	},
	"Controller/ValidateVolumeCapabilities": func(_ *node, id string) proto.Message {
		return &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id,
			VolumeCapabilities: []*csi.VolumeCapability{capabilitytest.Mount(capabilitytest.Writer, "")}}
	},
	// A snapshot is an object of its own, and has a guard of its own.
	"Controller/DeleteSnapshot": func(*node, string) proto.Message {
		return &csi.DeleteSnapshotRequest{SnapshotId: "snap-none"}
	},
	"Controller/GetSnapshot": func(h *node, id string) proto.Message {
		_, err := h.d.store.Pool.CreateSnapshot(blockdev.SnapshotRecord{ID: "snap-a", SourceVolumeID: id, SizeBytes: 16 * mib,
			BlockSizeBytes: 4096, State: blockdev.SnapshotReady})
		h.must(err)
		return &csi.GetSnapshotRequest{SnapshotId: "snap-a"}
	},
	"GroupController/DeleteVolumeGroupSnapshot": func(*node, string) proto.Message {
		return &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: "gsnap-none"}
	},
	"GroupController/GetVolumeGroupSnapshot": func(h *node, id string) proto.Message {
		_, err := h.d.store.Pool.CreateSnapshot(blockdev.SnapshotRecord{ID: "snap-b", SourceVolumeID: id, SizeBytes: 16 * mib,
			BlockSizeBytes: 4096, State: blockdev.SnapshotReady,
			GroupSnapshotID: "gsnap-a", Parameters: map[string]string{store.NoteGroupSize: "1"}})
		h.must(err)
		return &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: "gsnap-a"}
	},
	"GroupController/GroupControllerGetCapabilities": empty,

	"Controller/ListSnapshots": empty,
	"Controller/ListVolumes":   empty, "Controller/GetCapacity": empty, "Controller/ControllerListVolumeHealth": empty,
	"Controller/ControllerGetCapabilities": empty, "Node/NodeGetCapabilities": empty, "Node/NodeGetInfo": empty,
	"Node/NodeGetStorageHealth": empty,
	"Identity/GetPluginInfo":    empty, "Identity/GetPluginCapabilities": empty, "Identity/Probe": empty,
}

func empty(*node, string) proto.Message { return nil }

// recorder keeps what is registered with it.
type recorder map[*grpc.ServiceDesc]any

func (r recorder) RegisterService(desc *grpc.ServiceDesc, server any) { r[desc] = server }

// TestAddonsCallIsGuarded: a call of csi-addons that changes a volume waits its turn like a call of CSI.
func TestAddonsCallIsGuarded(t *testing.T) {
	h := newNode(t, startSidecar(t))
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""),
		map[string]string{parameter.KeyReplicable: "true"})
	services := recorder{}
	h.d.Register(services)
	enable := func() error {
		for desc, server := range services {
			if desc.ServiceName != replication.Controller_ServiceDesc.ServiceName {
				continue
			}
			_, err := server.(replication.ControllerServer).EnableVolumeReplication(context.Background(),
				&replication.EnableVolumeReplicationRequest{
					Parameters: map[string]string{parameter.KeyRemote: "site-b"},
					ReplicationSource: &replication.ReplicationSource{Type: &replication.ReplicationSource_Volume{
						Volume: &replication.ReplicationSource_VolumeSource{VolumeId: id}}},
				})
			return err
		}
		t.Fatal("the service is not registered")
		return nil
	}
	done, err := h.d.guards.Enter(id, "TestCall")
	h.must(err)
	if err := enable(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "TestCall") {
		t.Errorf("%v, want Aborted with the name of the running call", err)
	}
	done()
	h.must(enable())
}

// TestEveryCallIsGuarded goes through all calls of all services that the driver registers, while another call is at
// work on the volume.
func TestEveryCallIsGuarded(t *testing.T) {
	h := newNode(t, nil)
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	h.must(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "")))
	done, err := h.d.guards.Enter(id, "TestCall")
	h.must(err)
	defer done()
	services := recorder{}
	h.d.Register(services)
	seen := map[string]bool{}
	for desc, server := range services {
		if !strings.HasPrefix(desc.ServiceName, "csi.v1.") {
			continue // of csi-addons, and about groups: see TestAddonsCallIsGuarded
		}
		for _, method := range desc.Methods {
			name := strings.TrimPrefix(desc.ServiceName, "csi.v1.") + "/" + method.MethodName
			t.Run(name, func(t *testing.T) {
				guarded, free := guardedCalls[name], freeCalls[name]
				request := guarded
				if request == nil {
					request = free
				}
				var message proto.Message
				if request != nil {
					message = request(h, id)
				}
				_, err := method.Handler(server, context.Background(), func(into any) error {
					if message != nil {
						proto.Merge(into.(proto.Message), message)
					}
					return nil
				}, nil)
				seen[name] = true
				switch code := status.Code(err); {
				case code == codes.Unimplemented && request == nil:
				case code == codes.Unimplemented:
					t.Error("it is not implemented, but in a table")
				case request == nil:
					t.Errorf("it is in neither table: decide whether it acts on a volume (%v)", err)
				case guarded != nil && (code != codes.Aborted || !strings.Contains(err.Error(), "TestCall")):
					t.Errorf("%v, want Aborted with the name of the running call", err)
				case free != nil && err != nil:
					t.Errorf("%v, want an answer", err)
				}
			})
		}
	}
	for _, table := range []map[string]func(*node, string) proto.Message{guardedCalls, freeCalls} {
		for name := range table {
			if !seen[name] {
				t.Errorf("%s is no call of the driver", name)
			}
		}
	}
	h.must(func() error { done(); return h.unstage(id) }())
}

// TestHeadOfCalls: what a call needs is asked for before anything else.
func TestHeadOfCalls(t *testing.T) {
	h := newNode(t, nil)
	services := recorder{}
	h.d.Register(services)
	for desc, server := range services {
		for _, method := range desc.Methods {
			name := strings.TrimPrefix(desc.ServiceName, "csi.v1.") + "/" + method.MethodName
			request := guardedCalls[name]
			if request == nil {
				continue
			}
			fields := request(h, "vol-x").ProtoReflect().Descriptor().Fields()
			for i := range fields.Len() {
				field := fields.Get(i)
				full := request(h, "vol-x")
				if !full.ProtoReflect().Has(field) || field.Name() == "capacity_range" {
					continue // optional
				}
				full.ProtoReflect().Clear(field)
				_, err := method.Handler(server, context.Background(), func(into any) error {
					proto.Merge(into.(proto.Message), full)
					return nil
				}, nil)
				if status.Code(err) != codes.InvalidArgument {
					t.Errorf("%s without %s: %v, want InvalidArgument", name, field.Name(), err)
				}
			}
		}
	}
	if len(h.d.guards.Busy()) > 0 {
		t.Errorf("refused calls stay in flight: %v", h.d.guards.Busy())
	}
}

// TestHungFileSystem: a mounted file system that does not answer holds up one question about itself, and nothing else.
func TestHungFileSystem(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id, other := h.create("v", vc, nil), h.create("w", vc, nil)
	h.must(h.stage(id, vc))
	h.must(h.publish(id, "a", vc, false))
	entered, answer := make(chan struct{}), make(chan struct{})
	h.mu.Lock()
	h.hook = func(op string) error {
		if strings.HasPrefix(op, "usage") {
			h.hook = nil
			h.mu.Unlock()
			close(entered)
			<-answer
			h.mu.Lock()
		}
		return nil
	}
	h.mu.Unlock()
	stats := func(ctx context.Context) error {
		_, err := h.n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: h.target("a")})
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan error, 1)
	go func() { asked <- stats(ctx) }()
	select {
	case <-entered:
	case <-time.After(time.Minute):
		t.Fatal("the file system was never asked")
	}
	cancel()
	h.want(<-asked, codes.Canceled, "does not answer", h.target("a"))
	for range 3 {
		h.want(stats(context.Background()), codes.Aborted, "NodeGetVolumeStats") // at once, and without another that waits
	}
	h.must(h.unpublish(id, "a"))
	h.must(h.delete(other))
	h.must(h.publish(id, "a", vc, false))
	close(answer)
	for {
		if err := stats(context.Background()); status.Code(err) != codes.Aborted {
			h.must(err) // the first question was answered, and the next is asked
			break
		}
	}
	h.must(h.unpublish(id, "a"))
	h.must(h.unstage(id))
	h.clean()
}
