// Package csiaddons serves the csi-addons API (github.com/csi-addons/spec) for the volumes of one node: Identity,
// volume replication and volume groups. The controller of csi-addons calls it through its sidecar, which talks to
// package router; that passes each call to the node of the volume or group.
//
// A volume group is a consistency group, and its id the group's id, which is the same at both sites. Replication is a
// property of the group. So a call about a volume is about its group, and is refused if the group has other members.
//
// # Forced promotion
//
// After FAILED_PRECONDITION the controller repeats PromoteVolume with force at once and asks no person. So that code
// says one thing here: the peer has been silent for a while, and what it has written since is lost if this site is
// promoted. While the peer can be heard and this site lacks something of it, or could, the code is ABORTED with the
// reason, whether force is set or not. A person who wants that promotion gives the command that the message names.
//
// # Codes
//
//	INVALID_ARGUMENT     a call that cannot succeed as it is
//	NOT_FOUND            no such volume or group here
//	ABORTED              not now: another call runs, the volume is in use, the group's state does not allow it
//	FAILED_PRECONDITION  PromoteVolume: as above. Enable: the volume can never be replicated as it is. Volume groups:
//	                     the volumes cannot be in one group, or the group is not empty. Others: replication is not
//	                     enabled, or the role is the wrong one
//	UNAVAILABLE          the replicator does not answer
//
// # Roles
//
// At a secondary nothing is created, changed or deleted: the primary decides about a group. Disable, an empty
// membership and DeleteVolumeGroup succeed there and do nothing, so that the objects of csi-addons can go while the
// copy stays. Groups that were not made by CreateVolumeGroup keep their members in the same way.
//
// Everything is safe for concurrent use. Of several calls about one group one runs, the others get ABORTED.
package csiaddons
