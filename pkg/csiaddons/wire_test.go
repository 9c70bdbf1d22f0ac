package csiaddons

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	groups "github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	identity "github.com/slipstream-storage/slipstream/pkg/api/addonidentitypb"
	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/wire.txt")

// TestWire compares services, messages and numbers with testdata/wire.txt. The same listing of the files of
// github.com/csi-addons/spec at 80d74f987a54 was equal to that file. A controller that was built from those files has
// to understand this driver.
func TestWire(t *testing.T) {
	var b strings.Builder
	for _, file := range []protoreflect.FileDescriptor{identity.File_pkg_api_addonidentitypb_identity_proto,
		replication.File_pkg_api_addonreplicationpb_replication_proto, groups.File_pkg_api_addongrouppb_volumegroup_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				fmt.Fprintf(&b, "rpc /%s/%s %s %s\n", service.FullName(), m.Name(), m.Input().FullName(), m.Output().FullName())
			}
		}
		extensions := file.Extensions()
		for i := range extensions.Len() {
			e := extensions.Get(i)
			fmt.Fprintf(&b, "extension %s of %s = %d %s\n", e.FullName(), e.ContainingMessage().FullName(), e.Number(), e.Kind())
		}
		writeMessages(&b, file.Messages())
	}
	got := b.String()
	if *rewrite {
		if err := os.WriteFile("testdata/wire.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/wire.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the messages differ from csi-addons' (-want +got):\n%s", diff)
	}
}

func writeMessages(b *strings.Builder, messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		fmt.Fprintf(b, "message %s\n", m.FullName())
		var fields []protoreflect.FieldDescriptor
		for j := range m.Fields().Len() {
			fields = append(fields, m.Fields().Get(j))
		}
		slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
		for _, f := range fields {
			fmt.Fprintf(b, "  %d %s %s\n", f.Number(), f.Name(), typeOf(f))
		}
		for j := range m.ReservedRanges().Len() {
			fmt.Fprintf(b, "  reserved %d\n", m.ReservedRanges().Get(j)[0])
		}
		for j := range m.Enums().Len() {
			e := m.Enums().Get(j)
			for k := range e.Values().Len() {
				fmt.Fprintf(b, "  enum %s %s %d\n", e.Name(), e.Values().Get(k).Name(), e.Values().Get(k).Number())
			}
		}
		writeMessages(b, m.Messages())
	}
}

func typeOf(f protoreflect.FieldDescriptor) string {
	var kind string
	switch {
	case f.IsMap():
		return fmt.Sprintf("map<%s, %s>", f.MapKey().Kind(), f.MapValue().Kind()) + options(f)
	case f.Message() != nil:
		kind = string(f.Message().FullName())
	case f.Enum() != nil:
		kind = string(f.Enum().FullName())
	default:
		kind = f.Kind().String()
	}
	if f.IsList() {
		kind = "repeated " + kind
	}
	if o := f.ContainingOneof(); o != nil {
		kind += " oneof " + string(o.Name())
	}
	return kind + options(f)
}

// options are those that csi-addons sets: which fields are secret and must not be logged, and which may change.
func options(f protoreflect.FieldDescriptor) string {
	var set []string
	f.Options().ProtoReflect().Range(func(o protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		set = append(set, fmt.Sprintf(" [%s=%v]", o.FullName(), v.Interface()))
		return true
	})
	slices.Sort(set)
	return strings.Join(set, "")
}
