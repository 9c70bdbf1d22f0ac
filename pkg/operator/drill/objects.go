// Package drill describes the objects of a test failover: a namespace with its network policy, volumes and claims that
// show a copy, and Jobs that check it. It makes no call; package operator applies what it returns.
//
// All objects have the label of the operator and the uid of the action that they are of, by which they are found and
// removed. The namespace takes the pod security labels of the namespace that is tried, so that a test is no way around
// them.
//
// Functions have no state.
package drill

import (
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

const (
	// MountRoot is where a check finds the claims.
	MountRoot = "/claims"
	// checkTimeout bounds a check that does not say otherwise.
	checkTimeout = 10 * time.Minute
	// podSecurity begins the labels that say what pods of a namespace may do.
	podSecurity        = "pod-security.kubernetes.io/"
	podSecurityEnforce = podSecurity + "enforce"
)

// Namespace is the name of the namespace of a test, or an error that says why the action may not have it.
func Namespace(action *v1alpha1.GroupAction) (string, error) {
	name := action.Namespace + "-test"
	if test := action.Spec.Test; test != nil && test.Namespace != "" {
		name = test.Namespace
	}
	switch {
	case len(name) > 63:
		return "", fmt.Errorf("the namespace %s has more than 63 characters: name a shorter one in spec.test.namespace", name)
	case !strings.HasPrefix(name, action.Namespace+"-"):
		return "", fmt.Errorf("spec.test.namespace is %s: it has to begin with %s-, so that a test takes no name that "+
			"belongs to others", name, action.Namespace)
	}
	return name, nil
}

// Labels are those of all objects of a test.
func Labels(action *v1alpha1.GroupAction) map[string]string {
	return map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByOperator,
		v1alpha1.LabelTestOf: action.Namespace, v1alpha1.LabelTestAction: string(action.UID)}
}

// NamespaceObject is the namespace of a test of what is in the namespace tried.
func NamespaceObject(name string, action *v1alpha1.GroupAction, tried *corev1.Namespace) *corev1.Namespace {
	n := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: Labels(action)}}
	n.Labels[podSecurityEnforce] = "baseline"
	for key, value := range tried.GetLabels() {
		if strings.HasPrefix(key, podSecurity) {
			n.Labels[key] = value
		}
	}
	return n
}

// DenyAll is a policy that lets no pod of the namespace reach anything, or be reached.
func DenyAll(namespace string, action *v1alpha1.GroupAction) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "deny-all", Labels: Labels(action)},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress,
			networkingv1.PolicyTypeEgress}}}
}

// Volume is a volume of a view that a claim shows.
type Volume struct {
	// Claim is the name of the claim here and in the namespace that is tried.
	Claim string
	// Handle is what the driver calls the volume.
	Handle    string
	Node      string
	SizeBytes int64
	FSType    string
	Block     bool
}

// VolumeOf is the volume of a view that shows a member of a group.
func VolumeOf(node string, v *sidecarpb.ViewVolume, member *sidecarpb.VolumeStatus) Volume {
	shown := Volume{Claim: member.GetClaimName(), Handle: v.GetCsiVolumeId(), Node: node, SizeBytes: v.GetSizeBytes(),
		FSType: v.GetFsType(), Block: member.GetBlock() || member.GetClaim().GetBlock()}
	if shown.Claim == "" {
		shown.Claim = v.GetVolumeId()
	}
	return shown
}

func (v *Volume) mode() *corev1.PersistentVolumeMode {
	mode := corev1.PersistentVolumeFilesystem
	if v.Block {
		mode = corev1.PersistentVolumeBlock
	}
	return &mode
}

func (v *Volume) size() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(v.SizeBytes, resource.BinarySI)}
}

// accessModes: a view's devices are on one node.
func accessModes() []corev1.PersistentVolumeAccessMode {
	return []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
}

// PersistentVolume shows the volume. It is bound by the claim of its name only, and what is behind it stays when it
// goes: the operator deletes the view.
func (v *Volume) PersistentVolume(namespace string, action *v1alpha1.GroupAction) *corev1.PersistentVolume {
	fsType := v.FSType
	if v.Block {
		fsType = ""
	}
	return &corev1.PersistentVolume{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{Name: "test-" + v.Handle, Labels: Labels(action)},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: v.size(), AccessModes: accessModes(), VolumeMode: v.mode(),
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace,
				Name: v.Claim},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: plugin.Name, VolumeHandle: v.Handle, FSType: fsType}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: plugin.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{v.Node}}}}}}},
		}}
}

// PersistentVolumeClaim is the claim of the volume.
func (v *Volume) PersistentVolumeClaim(namespace string, action *v1alpha1.GroupAction) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v.Claim, Labels: Labels(action)},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: accessModes(), VolumeMode: v.mode(),
			StorageClassName: new(string), VolumeName: "test-" + v.Handle,
			Resources: corev1.VolumeResourceRequirements{Requests: v.size()}}}
}

// JobName is the name of the Job of a check.
func JobName(check *v1alpha1.Check) string { return "check-" + check.Name }

// Job runs a check once, with all claims.
func Job(namespace string, action *v1alpha1.GroupAction, check *v1alpha1.Check, volumes []Volume) *batchv1.Job {
	timeout := checkTimeout
	if check.Timeout != nil {
		timeout = check.Timeout.Duration
	}
	container := corev1.Container{Name: "check", Image: check.Image, Command: check.Command, Args: check.Args,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: new(false), RunAsUser: check.RunAsUser,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}}
	if check.RunAsUser != nil {
		container.SecurityContext.RunAsNonRoot = new(*check.RunAsUser != 0)
	}
	for _, variable := range check.Env {
		container.Env = append(container.Env, corev1.EnvVar{Name: variable.Name, Value: variable.Value})
	}
	pod := corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: new(false),
		EnableServiceLinks: new(false), SecurityContext: &corev1.PodSecurityContext{
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}}
	for i, v := range volumes {
		name, at := fmt.Sprintf("claim-%d", i), MountRoot+"/"+v.Claim
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.Claim}}})
		if v.Block {
			container.VolumeDevices = append(container.VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: at})
		} else {
			container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: at})
		}
	}
	pod.Containers = []corev1.Container{container}
	return &batchv1.Job{TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: JobName(check), Labels: Labels(action)},
		Spec: batchv1.JobSpec{BackoffLimit: new(int32(0)), ActiveDeadlineSeconds: new(int64(timeout.Seconds())),
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: Labels(action)}, Spec: pod}}}
}
