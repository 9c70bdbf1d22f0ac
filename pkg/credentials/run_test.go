package credentials

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// apiServer is as much of one as Secrets of the namespace ns need.
type apiServer struct {
	mu      sync.Mutex
	secrets map[string]*corev1.Secret
	writes  int
	// fail refuses the write of this number; a meddler writes before it.
	fail    int
	meddler func(a *apiServer)
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(code int, reason metav1.StatusReason) {
		answer(code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: metav1.StatusFailure, Reason: reason, Code: int32(code)})
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/ns/secrets")
	if !ok {
		refuse(http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	}
	name = strings.TrimPrefix(name, "/")
	if r.Method == http.MethodGet {
		if s := a.secrets[name]; s != nil {
			answer(http.StatusOK, s)
		} else {
			refuse(http.StatusNotFound, metav1.StatusReasonNotFound)
		}
		return
	}
	if a.writes++; a.writes == a.fail {
		refuse(http.StatusInternalServerError, metav1.StatusReasonInternalError)
		return
	}
	if meddler := a.meddler; meddler != nil {
		a.meddler = nil
		meddler(a)
	}
	var s corev1.Secret
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		refuse(http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	old := a.secrets[s.Name]
	switch {
	case r.Method == http.MethodPost && old != nil:
		refuse(http.StatusConflict, metav1.StatusReasonAlreadyExists)
	case r.Method == http.MethodPut && (old == nil || old.ResourceVersion != s.ResourceVersion):
		refuse(http.StatusConflict, metav1.StatusReasonConflict)
	default:
		a.put(&s)
		answer(http.StatusOK, &s)
	}
}

func (a *apiServer) put(s *corev1.Secret) {
	s.TypeMeta = metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}
	s.ResourceVersion = strconv.Itoa(len(a.secrets) + a.writes + 1000)
	a.secrets[s.Name] = s
}

func (a *apiServer) pair() pair {
	return pair{sideOf(a.secrets["node"]), sideOf(a.secrets["controller"])}
}

func start(t *testing.T) (*apiServer, *secrets) {
	t.Helper()
	a := &apiServer{secrets: map[string]*corev1.Secret{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	s, err := newSecrets(&rest.Config{Host: server.URL, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, "ns")
	if err != nil {
		t.Fatal(err)
	}
	return a, s
}

var options = Options{Namespace: "ns", NodeSecret: "node", ControllerSecret: "controller", MetricsSecret: "metrics",
	Validity: validity}

// TestRun: a first run makes everything, a repetition changes nothing, and a renewal goes through its steps.
func TestRun(t *testing.T) {
	a, s := start(t)
	now := time.Now()
	if err := run(t.Context(), s, options, now); err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(a.secrets)); !slices.Equal(names, []string{"controller", "metrics", "node"}) ||
		!a.pair().fits(now) {
		t.Fatalf("made %v", names)
	}
	if a.secrets["node"].Type != corev1.SecretTypeTLS || len(a.secrets["metrics"].Data[TokenKey]) < 20 {
		t.Errorf("made %v, token %q", a.secrets["node"].Type, a.secrets["metrics"].Data)
	}
	for _, secret := range a.secrets {
		for key := range secret.Data {
			if strings.Contains(key, "ca.key") {
				t.Errorf("Secret %s has %s", secret.Name, key)
			}
		}
	}
	first, writes := a.pair(), a.writes
	if err := run(t.Context(), s, options, now.Add(24*time.Hour)); err != nil || a.writes != writes {
		t.Fatalf("a repetition made %d writes: %v", a.writes-writes, err)
	}
	for day := range 45 {
		at := now.Add(time.Duration(day) * 24 * time.Hour)
		if err := run(t.Context(), s, options, at); err != nil {
			t.Fatal(err)
		}
		if !a.pair().fits(at) {
			t.Fatalf("day %d: the sides do not trust each other", day)
		}
	}
	if got := a.pair(); string(got.node.cert) == string(first.node.cert) || got.node.nextCert != nil ||
		string(got.node.ca) != string(got.controller.ca) {
		t.Errorf("after a renewal: %+v", got)
	}
}

// TestRunIsInterrupted: whichever write fails, the next run ends well.
func TestRunIsInterrupted(t *testing.T) {
	for fail := 1; fail <= 3; fail++ {
		a, s := start(t)
		a.fail = fail
		if err := run(t.Context(), s, options, time.Now()); err == nil {
			t.Fatalf("write %d: no error", fail)
		}
		if err := run(t.Context(), s, options, time.Now()); err != nil || !a.pair().fits(time.Now()) ||
			a.secrets["metrics"] == nil {
			t.Errorf("write %d: %v", fail, err)
		}
	}
}

// TestTwoRunsAtOnce: what another one has written meanwhile is not written over, and the two end with one pair.
func TestTwoRunsAtOnce(t *testing.T) {
	a, s := start(t)
	theirs, err := issue(time.Now(), validity)
	if err != nil {
		t.Fatal(err)
	}
	a.meddler = func(a *apiServer) {
		for name, side := range map[string]*side{"node": theirs.node, "controller": theirs.controller} {
			a.put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns",
				Labels: map[string]string{ownLabel: ownValue}}, Data: side.data()})
		}
	}
	o := options
	o.MetricsSecret = ""
	if err := run(t.Context(), s, o, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := a.pair(); string(got.node.cert) != string(theirs.node.cert) ||
		string(got.controller.cert) != string(theirs.controller.cert) {
		t.Error("the other's certificates were replaced")
	}
}

// TestForeignSecret: a Secret of another owner is not touched, and the error says so.
func TestForeignSecret(t *testing.T) {
	for _, name := range []string{"node", "controller", "metrics"} {
		a, s := start(t)
		a.put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
			Data: map[string][]byte{"tls.crt": []byte("theirs")}})
		err := run(t.Context(), s, options, time.Now())
		if err == nil || !strings.Contains(err.Error(), "Secret ns/"+name+" that this program did not make") {
			t.Errorf("%s: %v", name, err)
		}
		if string(a.secrets[name].Data["tls.crt"]) != "theirs" {
			t.Errorf("%s was written over", name)
		}
	}
}

func TestCheck(t *testing.T) {
	for want, o := range map[string]Options{
		"namespace":       {NodeSecret: "a", ControllerSecret: "b", Validity: validity},
		"both or neither": {Namespace: "ns", NodeSecret: "a", Validity: validity},
		"no Secret":       {Namespace: "ns", Validity: validity},
		"one name":        {Namespace: "ns", NodeSecret: "a", ControllerSecret: "b", MetricsSecret: "b", Validity: validity},
		"at least":        {Namespace: "ns", NodeSecret: "a", ControllerSecret: "b", Validity: time.Hour},
	} {
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
	if err := errors.Join(options.Check(),
		Options{Namespace: "ns", MetricsSecret: "m", Validity: validity}.Check()); err != nil {
		t.Error(err)
	}
}
