package kubesite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode is a replicator that knows groups by name.
type fakeNode struct {
	sidecarpb.UnimplementedSidecarServer
	mu     sync.Mutex
	groups []string
	calls  []string
}

func (f *fakeNode) called(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeNode) ListGroups(context.Context, *sidecarpb.ListGroupsRequest) (*sidecarpb.ListGroupsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &sidecarpb.ListGroupsResponse{}
	for _, name := range f.groups {
		response.Groups = append(response.Groups, &sidecarpb.GroupStatus{Name: name})
	}
	return response, nil
}

func (f *fakeNode) ListTails(_ context.Context, r *sidecarpb.ListTailsRequest) (*sidecarpb.ListTailsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &sidecarpb.ListTailsResponse{}
	for _, name := range f.groups {
		if r.GetGroup() == "" || r.GetGroup() == name {
			response.Tails = append(response.Tails, &sidecarpb.Tail{Id: "tail-of-" + name, Group: name})
		}
	}
	return response, nil
}

func (f *fakeNode) CreateGroup(_ context.Context,
	r *sidecarpb.CreateGroupRequest) (*sidecarpb.CreateGroupResponse, error) {
	f.called("create %s", r.GetName())
	return &sidecarpb.CreateGroupResponse{GroupId: "g"}, nil
}

func (f *fakeNode) Promote(_ context.Context, r *sidecarpb.PromoteRequest) (*sidecarpb.PromoteResponse, error) {
	f.called("promote %s", r.GetGroup())
	return &sidecarpb.PromoteResponse{Status: &sidecarpb.GroupStatus{Name: r.GetGroup()}}, nil
}

func (f *fakeNode) WatchGroup(r *sidecarpb.WatchGroupRequest,
	stream grpc.ServerStreamingServer[sidecarpb.GroupStatus]) error {
	f.called("watch %s", r.GetName())
	return errors.Join(stream.Send(&sidecarpb.GroupStatus{Name: r.GetName()}),
		stream.Send(&sidecarpb.GroupStatus{Name: r.GetName()}))
}

// fakeCluster is an API server with pods, whose exec reaches the fake nodes' sockets as the real one's reaches slipctl
// connect.
type fakeCluster struct {
	t       *testing.T
	pods    []corev1.Pod
	sockets map[string]string // by pod; one without a socket fails
	options Options

	// asked are the paths that were read besides pods; bundles is what slipctl bundle prints.
	mu      sync.Mutex
	asked   []string
	bundles string
	// objects are answers by path; of other paths it is the path.
	objects map[string]string
}

func newFakeCluster(t *testing.T) *fakeCluster {
	f := &fakeCluster{t: t, sockets: map[string]string{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.options = Options{Kubeconfig: kubeconfigFor(t, server.URL), Context: "site-a", Namespace: "storage"}
	return f
}

// kubeconfigFor writes a file whose context site-a is an API server.
func kubeconfigFor(t *testing.T, address string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(
		`{apiVersion: v1, kind: Config, current-context: wrong, contexts: [{name: site-a, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {}}]}`, address)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// add makes a node with a pod; a nil server is a replicator that cannot be reached though it runs.
func (f *fakeCluster) add(node string, server *fakeNode) {
	// The labels are those of the chart (templates/node.yaml).
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + node, Labels: map[string]string{
		nameLabel: "renamed", instanceLabel: "release", partOfLabel: partOf, "app.kubernetes.io/component": "node"}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: container}}}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	f.pods = append(f.pods, pod)
	if server == nil {
		return
	}
	dir, err := os.MkdirTemp("", "kube") // a socket's path is short
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { os.RemoveAll(dir) })
	f.sockets[pod.Name] = filepath.Join(dir, "s")
	listener, err := net.Listen("unix", f.sockets[pod.Name])
	if err != nil {
		f.t.Fatal(err)
	}
	s := grpc.NewServer()
	sidecarpb.RegisterSidecarServer(s, server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(listener) })
	f.t.Cleanup(func() { s.Stop(); serving.Wait() })
}

func (f *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const pods = "/api/v1/namespaces/storage/pods"
	switch path := r.URL.Path; {
	case path == pods:
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, pod := range f.pods {
			if selector.Matches(labels.Set(pod.Labels)) {
				list.Items = append(list.Items, pod)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	case strings.HasPrefix(path, pods+"/") && strings.HasSuffix(path, "/exec"):
		if r.Header.Get("Upgrade") == "websocket" {
			// As an old API server, or a proxy that does not know WebSockets; then it is SPDY.
			http.Error(w, "no WebSockets", http.StatusBadRequest)
			return
		}
		pod := strings.TrimSuffix(strings.TrimPrefix(path, pods+"/"), "/exec")
		query := r.URL.Query()
		command := query["command"]
		if f.bundles != "" && slices.Equal(command, []string{"slipctl", "bundle", "--file", "-"}) {
			remotecommand.ServeExec(w, r, f, pod, "", container, command, &remotecommand.Options{Stdout: true, Stderr: true},
				time.Minute, time.Minute, remotecommand.SupportedStreamingProtocols)
			return
		}
		if query.Get("container") != container || !slices.Equal(command, connectCommand) {
			http.Error(w, "another command: "+r.URL.RawQuery, http.StatusForbidden)
			return
		}
		remotecommand.ServeExec(w, r, f, pod, "", container, connectCommand,
			&remotecommand.Options{Stdin: true, Stdout: true, Stderr: true},
			time.Minute, time.Minute, remotecommand.SupportedStreamingProtocols)
	case f.bundles != "":
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked = append(f.asked, path)
		if strings.HasSuffix(path, "/csinodes") {
			http.Error(w, "may not", http.StatusForbidden)
			return
		}
		if text := f.objects[path]; text != "" {
			fmt.Fprint(w, text)
			return
		}
		fmt.Fprintf(w, "%s %s", path, r.URL.Query().Get("previous"))
	default:
		http.Error(w, "not found", http.StatusNotFound)
	}
}

// ExecInContainer is slipctl connect, or slipctl bundle.
func (f *fakeCluster) ExecInContainer(_ context.Context, pod, _, _ string, command []string, in io.Reader,
	out, stderr io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if command[1] == "bundle" {
		_, err := io.WriteString(out, f.bundles+" of "+pod)
		return err
	}
	conn, err := net.Dial("unix", f.sockets[pod])
	if err != nil {
		fmt.Fprintln(stderr, "slipctl: the socket of "+pod+" is not there")
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, in)
		conn.Close()
	}()
	_, _ = io.Copy(out, conn)
	return nil
}

func (f *fakeCluster) connect(node string, warned *[]string) (*Conn, error) {
	f.t.Helper()
	cluster, err := Open(f.options)
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := cluster.Connect(f.t.Context(), node, func(format string, args ...any) {
		if warned != nil {
			*warned = append(*warned, fmt.Sprintf(format, args...))
		}
	})
	if err == nil {
		f.t.Cleanup(func() {
			if err := conn.Close(); err != nil {
				f.t.Error(err)
			}
		})
	}
	return conn, err
}

// Calls go to the node that has the group; lists are of all nodes.
func TestRouting(t *testing.T) {
	f := newFakeCluster(t)
	a, b := &fakeNode{groups: []string{"shop", "both"}}, &fakeNode{groups: []string{"mail", "both"}}
	f.add("node-b", b)
	f.add("node-a", a)
	conn, err := f.connect("", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := sidecarpb.NewSidecarClient(conn)
	list, err := client.ListGroups(t.Context(), &sidecarpb.ListGroupsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range list.GetGroups() {
		names = append(names, g.GetName())
	}
	if want := []string{"both", "both", "mail", "shop"}; !slices.Equal(names, want) {
		t.Errorf("groups %v, want %v", names, want)
	}
	for group, want := range map[string]string{"": "tail-of-both tail-of-both tail-of-mail tail-of-shop",
		"mail": "tail-of-mail"} {
		tails, err := client.ListTails(t.Context(), &sidecarpb.ListTailsRequest{Group: group})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, tail := range tails.GetTails() {
			ids = append(ids, tail.GetId())
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("tails of %q: %s", group, got)
		}
	}
	if _, err := client.Promote(t.Context(), &sidecarpb.PromoteRequest{Group: "mail"}); err != nil {
		t.Error(err)
	}
	stream, err := client.WatchGroup(t.Context(), &sidecarpb.WatchGroupRequest{Name: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if g, err := stream.Recv(); err != nil || g.GetName() != "shop" {
			t.Errorf("watch: %v, %v", g, err)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the watch: %v", err)
	}
	if node, err := conn.NodeOf(t.Context(), "mail"); err != nil || node != "node-b" {
		t.Errorf("the node of mail: %s, %v", node, err)
	}
	for _, tt := range []struct {
		name string
		call func() error
		code codes.Code
		want string
	}{
		{"a group that is nowhere", func() error {
			_, err := client.Promote(t.Context(), &sidecarpb.PromoteRequest{Group: "none"})
			return err
		}, codes.NotFound, "node-a, node-b"},
		{"a group that is on two nodes", func() error {
			_, err := client.Promote(t.Context(), &sidecarpb.PromoteRequest{Group: "both"})
			return err
		}, codes.FailedPrecondition, "--node"},
		{"a new group on no chosen node", func() error {
			_, err := client.CreateGroup(t.Context(), &sidecarpb.CreateGroupRequest{Name: "new"})
			return err
		}, codes.InvalidArgument, "--node"},
		{"a call that names no group", func() error {
			_, err := client.Probe(t.Context(), &sidecarpb.ProbeRequest{})
			return err
		}, codes.Unimplemented, "names no group"},
		{"a watch of a group that is nowhere", func() error {
			_, err := client.WatchGroup(t.Context(), &sidecarpb.WatchGroupRequest{Name: "none"})
			return err
		}, codes.NotFound, "none"},
	} {
		if err := tt.call(); status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %v with %q", tt.name, err, tt.code, tt.want)
		}
	}

	chosen, err := f.connect("node-b", nil)
	if err != nil {
		t.Fatal(err)
	}
	client = sidecarpb.NewSidecarClient(chosen)
	if _, err := client.CreateGroup(t.Context(), &sidecarpb.CreateGroupRequest{Name: "new"}); err != nil {
		t.Error(err)
	}
	if _, err := client.Promote(t.Context(), &sidecarpb.PromoteRequest{Group: "both"}); err != nil {
		t.Error(err)
	}
	if want := []string{"watch shop"}; !slices.Equal(a.calls, want) {
		t.Errorf("node-a was asked to %v, want %v", a.calls, want)
	}
	if want := []string{"promote mail", "create new", "promote both"}; !slices.Equal(b.calls, want) {
		t.Errorf("node-b was asked to %v, want %v", b.calls, want)
	}
}

// A node that cannot be reached does not keep the others from being used, and a group that no answering node has may
// be there.
func TestNodeAway(t *testing.T) {
	f := newFakeCluster(t)
	f.add("node-a", &fakeNode{groups: []string{"shop"}})
	f.add("node-b", nil)
	f.add("node-c", &fakeNode{})
	f.pods[2].Status.ContainerStatuses[0].State = corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	var warned []string
	conn, err := f.connect("", &warned)
	if err != nil {
		t.Fatal(err)
	}
	client := sidecarpb.NewSidecarClient(conn)
	list, err := client.ListGroups(t.Context(), &sidecarpb.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	all := strings.Join(warned, "\n")
	for _, want := range []string{"node-c: pod pod-node-c: its replicator waits: CrashLoopBackOff",
		"the socket of pod-node-b is not there"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing was said about %q, only\n%s", want, all)
		}
	}
	if _, err := client.Promote(t.Context(), &sidecarpb.PromoteRequest{Group: "shop"}); err != nil {
		t.Error(err)
	}
	_, err = client.Promote(t.Context(), &sidecarpb.PromoteRequest{Group: "none"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "node-b") ||
		!strings.Contains(err.Error(), "node-c") {
		t.Errorf("a group that may be on a node that is away: %v", err)
	}
	if _, err := f.connect("node-c", nil); err == nil || !strings.Contains(err.Error(), "CrashLoopBackOff") {
		t.Errorf("the node that is away: %v", err)
	}
}

func TestNoPods(t *testing.T) {
	f := newFakeCluster(t)
	if _, err := f.connect("", nil); err == nil || !strings.Contains(err.Error(), "--namespace") {
		t.Errorf("no pods: %v", err)
	}
	f.options.Context = "missing"
	if _, err := Open(f.options); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a context that is not there: %v", err)
	}
}
