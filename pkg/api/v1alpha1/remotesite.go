package v1alpha1

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RemoteSite is another site that groups of this cluster replicate to, or that replicates to this cluster. Its name is
// the name of the site in its certificate. Only an administrator of the cluster writes it: it decides which namespaces
// may replicate, and what is accepted from the site.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=rsite,categories=slipstream
// +kubebuilder:printcolumn:name=Reachable,type=string,JSONPath=`.status.conditions[?(@.type=="Reachable")].status`
// +kubebuilder:printcolumn:name=Groups,type=integer,JSONPath=`.status.groups`
// +kubebuilder:printcolumn:name=Lag,type=string,JSONPath=`.status.maxLag`
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="the name of a site has at most 63 characters"
type RemoteSite struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says how groups replicate to the site, and who may.
	// +optional
	Spec RemoteSiteSpec `json:"spec,omitempty"`
	// status says what the groups of this cluster tell of the site.
	// +optional
	Status RemoteSiteStatus `json:"status,omitempty"`
}

// RemoteSiteSpec says how groups replicate to the site, and who may.
type RemoteSiteSpec struct {
	// namespaces selects the namespaces of this cluster whose groups may replicate to the site. A namespace with the label
	// slipstream.dev/replicate-to and the name of the site is always admitted. Absent: only these.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="the operators of matchExpressions are In, NotIn, Exists and DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, (e.operator in ['In', 'NotIn']) == (has(e.values) && e.values.size() > 0))",message="In and NotIn need values, and Exists and DoesNotExist have none"
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	// address is host:port of the site for the groups of this cluster. Absent: the address that the replicators have
	// (site.peers in the chart).
	// +optional
	// +kubebuilder:validation:MaxLength=259
	// +kubebuilder:validation:Pattern=`^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$`
	Address string `json:"address,omitempty"`
	// defaults are the settings of groups that do not say otherwise.
	// +optional
	Defaults ReplicationSettings `json:"defaults,omitempty"`
	// accept says what this cluster accepts from the site. Absent: nothing.
	// +optional
	Accept *Accept `json:"accept,omitempty"`
	// map translates what the site names to the names of this cluster. What is not listed keeps its name.
	// +optional
	Map Mapping `json:"map,omitempty"`
}

// ReplicationSettings are settings of a group that can be changed under load.
type ReplicationSettings struct {
	// rpoTarget is the largest lag of the copy. Conditions, metrics and alerts report a larger one. 0 is no target.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="0s to 720h"
	RPOTarget *metav1.Duration `json:"rpoTarget,omitempty"`
	// rtoTarget is how long a failover may take until the group can be used. Results and reports of actions compare what
	// was measured with it. The engine does not know it.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="0s to 720h"
	RTOTarget *metav1.Duration `json:"rtoTarget,omitempty"`
	// journalSize is the size of the journal of each group at the engine. Default: 1Gi.
	// +optional
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('16Mi')) >= 0",message="at least 16Mi"
	JournalSize *resource.Quantity `json:"journalSize,omitempty"`
	// journalFull says what happens when the journal is full of records that the peer has not acknowledged. Track: the
	// oldest records are folded into the change map, and writes continue. Stall: writes wait. Default: Track.
	// +optional
	JournalFull JournalFull `json:"journalFull,omitempty"`
	// shipRate bounds what each group at the engine sends to the site, in bytes a second after compression, syncs
	// included. 0 is no bound.
	// +optional
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('0')) == 0 || quantity(string(self)).compareTo(quantity('64Ki')) >= 0",message="0, or at least 64Ki"
	ShipRate *resource.Quantity `json:"shipRate,omitempty"`
	// keepTails is how many divergent tails this cluster keeps of each group at the engine: what the group had written
	// here and gave up when it yielded. The newest always stays. 0 keeps all. The other site decides for itself.
	// +optional
	// +kubebuilder:validation:Minimum=0
	KeepTails *int32 `json:"keepTails,omitempty"`
	// keepTailsFor is how long they are kept. The newest always stays. 0 is without limit.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('87600h')",message="0s to 87600h"
	KeepTailsFor *metav1.Duration `json:"keepTailsFor,omitempty"`
}

// JournalFull says what happens when a journal is full.
// +kubebuilder:validation:Enum=Track;Stall
type JournalFull string

// The values of JournalFull.
const (
	JournalFullTrack JournalFull = "Track"
	JournalFullStall JournalFull = "Stall"
)

// Accept says what this cluster accepts from a site.
type Accept struct {
	// namespaces are those of this cluster, after mapping, that claims of the site may be made in. "*" is every
	// namespace that is not a system namespace.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	Namespaces []string `json:"namespaces"`
	// claims says what is made for a claim of the site. Bound: a PersistentVolume and a claim that is bound to it.
	// Reserve: a PersistentVolume that only a claim of that name can bind. None: nothing. Default: Bound.
	// +optional
	// +kubebuilder:default=Bound
	Claims AcceptClaims `json:"claims,omitempty"`
	// labels are keys of claims' labels that are taken over from the site, beside app and the app.kubernetes.io keys. A
	// key that ends with "/*" is every key with that prefix. Keys of Kubernetes and of slipstream.dev are never taken
	// over.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=317
	Labels []string `json:"labels,omitempty"`
}

// Takes reports whether claims of the site may be in a namespace of this cluster. A system namespace is never one.
func (a *Accept) Takes(namespace string) bool {
	return !strings.HasPrefix(namespace, "kube-") &&
		(slices.Contains(a.Namespaces, namespace) || slices.Contains(a.Namespaces, "*") && namespace != "default")
}

// AcceptClaims says what is made for a claim of another site.
// +kubebuilder:validation:Enum=Bound;Reserve;None
type AcceptClaims string

// The values of AcceptClaims.
const (
	AcceptClaimsBound   AcceptClaims = "Bound"
	AcceptClaimsReserve AcceptClaims = "Reserve"
	AcceptClaimsNone    AcceptClaims = "None"
)

// Mapping translates names of a site.
type Mapping struct {
	// namespaces translates names of namespaces.
	// +optional
	// +listType=map
	// +listMapKey=remote
	// +kubebuilder:validation:MaxItems=256
	Namespaces []NameMapping `json:"namespaces,omitempty"`
	// storageClasses translates names of StorageClasses.
	// +optional
	// +listType=map
	// +listMapKey=remote
	// +kubebuilder:validation:MaxItems=64
	StorageClasses []NameMapping `json:"storageClasses,omitempty"`
}

// Namespace returns the name here of a namespace of the site.
func (m *Mapping) Namespace(remote string) string { return local(m.Namespaces, remote) }

// StorageClass returns the name here of a StorageClass of the site.
func (m *Mapping) StorageClass(remote string) string { return local(m.StorageClasses, remote) }

func local(names []NameMapping, remote string) string {
	for _, m := range names {
		if m.Remote == remote {
			return m.Local
		}
	}
	return remote
}

// NameMapping translates one name.
type NameMapping struct {
	// remote is the name at the remote site.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Remote string `json:"remote"`
	// local is the name in this cluster.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Local string `json:"local"`
}

// RemoteSiteStatus says what the groups of this cluster tell of the site.
type RemoteSiteStatus struct {
	// observedGeneration is the generation of the spec that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// groups is how many ConsistencyGroups name the site.
	// +optional
	Groups int32 `json:"groups"`
	// maxLag is the largest lag of these groups. Absent: unknown, or there is none.
	// +optional
	MaxLag *metav1.Duration `json:"maxLag,omitempty"`
	// conditions: Reachable, ClaimsPresent.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// RemoteSiteList is a list of RemoteSites.
//
// +kubebuilder:object:root=true
type RemoteSiteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RemoteSite `json:"items"`
}
