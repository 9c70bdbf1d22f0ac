// Package bug holds deliberate faults, one for each guarantee, so that the tests of the guarantees can be shown to
// catch what they are for. The files in internal/bug/faults say what each fault changes in the product's sources, and
// package inject builds them in: the sources themselves have none. A build with the tag slipstream_bugs and the overlay
// of package inject reads the wanted fault's name from the environment variable SLIPSTREAM_BUG.
package bug

// Name of a fault.
type Name string

const (
	// SwapRecords ships two neighbouring writes of a batch with their contents exchanged (breaks G1).
	SwapRecords Name = "swap-records"
	// ApplyBeforeDurable writes records to the image before the journal is durable (breaks G1 on the primary, G4).
	ApplyBeforeDurable Name = "apply-before-durable"
	// RecallVolatile lets the journal's memory hand out records that are not durable yet (breaks G1, G4).
	RecallVolatile Name = "recall-volatile"
	// AckBeforeDurable acknowledges batches to the primary before they are durable (breaks G1 at the secondary).
	AckBeforeDurable Name = "ack-before-durable"
	// StallOnLink makes writers wait for the peer's acknowledgement (breaks G2).
	StallOnLink Name = "stall-on-link"
	// PromoteInSync takes a copy in the middle of a sync for a whole one (breaks G3).
	PromoteInSync Name = "promote-in-sync"
	// FlushNothing completes flushes without a sync of the journal (breaks G4).
	FlushNothing Name = "flush-nothing"
	// AnswerBeforeDurable answers writes to volumes with order ack when they are appended, not durable (breaks G1, G4).
	AnswerBeforeDurable Name = "answer-before-durable"
	// NoResend does not ask the kernel to resend what was in flight at a kill (breaks G5).
	NoResend Name = "no-resend"
	// ExpireNewest lets the settings of a group delete its newest divergent tail (breaks G6).
	ExpireNewest Name = "expire-newest"
	// FollowAnyone accepts a primary whatever its timeline (breaks G6).
	FollowAnyone Name = "follow-anyone"
	// MiscountLoss reports one lost ordinal less than there were (breaks G7).
	MiscountLoss Name = "miscount-loss"
	// UnderstateLoss takes what the primary says for what is so when it arrives, however long it was on its way (breaks
	// G7).
	UnderstateLoss Name = "understate-loss"
	// ForgetFolded drops folded extents instead of marking them (a broken resync).
	ForgetFolded Name = "forget-folded"
	// FoldUnordered lets the sender ship records of a segment that is in the change map already (breaks G1).
	FoldUnordered Name = "fold-unordered"
	// TrustOrdinals takes a peer for what it was when it was last heard, by its ordinals alone (breaks G1 after a
	// rollback).
	TrustOrdinals Name = "trust-ordinals"
	// TrustExtents goes on with a sync whose extents may show writes that the primary lost (breaks G1 after a rollback).
	TrustExtents Name = "trust-extents"
	// LeaveUnapplied lets a volume leave its group with records that are not in its image (breaks G4, G5).
	LeaveUnapplied Name = "leave-unapplied"
	// KeepOldCopy lets a group take a copy over with another group's content in it (a broken sync).
	KeepOldCopy Name = "keep-old-copy"
	// ReviveMembers takes back a member that has left the group when an older record describes it.
	ReviveMembers Name = "revive-members"
	// SkipReconcile lets a driver that starts leave what interrupted calls left (breaks G8).
	SkipReconcile Name = "skip-reconcile"
	// ForgetRemovedImage takes a volume whose image has no name any more for an unused one (deletes it under its
	// mounts).
	ForgetRemovedImage Name = "forget-removed-image"
	// MakePoolAnew makes a pool where one was that is not mounted (volumes that are elsewhere count as deleted; breaks
	// G8).
	MakePoolAnew Name = "make-pool-anew"
	// ModifyVolatile changes a group's settings in memory alone (breaks G8).
	ModifyVolatile Name = "modify-volatile"
	// NoShipLimit ignores the bound of what is sent to a peer.
	NoShipLimit Name = "no-ship-limit"
	// CutAfterApply lets apply change an image before a snapshot has the content that it overwrites (breaks a
	// snapshot's order).
	CutAfterApply Name = "cut-after-apply"
	// CutTwoOrdinals lets apply go on between the images of one cut (breaks a group snapshot's order).
	CutTwoOrdinals Name = "cut-two-ordinals"
	// KeepNothing lets apply change an image before a preserved one has what it overwrites (breaks G3, and views).
	KeepNothing Name = "keep-nothing"
	// RollBackInPart leaves an extent as it is when images are rolled back (breaks G3).
	RollBackInPart Name = "roll-back-in-part"
	// CommitWithoutTail lets a group stay at a point without a tail of what it held past it (breaks G6).
	CommitWithoutTail Name = "commit-without-tail"
	// RollBackToOlder takes a point back to an older state than the copy that was held (breaks G3).
	RollBackToOlder Name = "roll-back-to-older"
	// TrialDropsHeld gives up what a copy held when a group that was opened at a point starts again (breaks G3, G8).
	TrialDropsHeld Name = "trial-drops-held"
	// ForgetChanges does not track what changes after a snapshot (breaks the changed blocks).
	ForgetChanges Name = "forget-changes"
	// MissDiscards leaves what a volume gave back out of the changed blocks of snapshots without a change set (breaks
	// them).
	MissDiscards Name = "miss-discards"
	// SharedAnyway takes two extents for the same without looking where they are (breaks the changed blocks of reflinks).
	SharedAnyway Name = "shared-anyway"
	// FollowOldCall takes a call from before a promotion for the latest primary's (leaves a group without a primary).
	FollowOldCall Name = "follow-old-call"
	// IgnoreSilent lets the gateway act as if a node that does not answer had nothing (a second copy of a group at a
	// site).
	IgnoreSilent Name = "ignore-silent"
	// FailWithoutSpace stops a group that had no space to write its record, until a restart (breaks G8).
	FailWithoutSpace Name = "fail-without-space"
	// SkipPeerCheck takes every peer of the site for a group's own (a stranger ends another site's stream and learns of
	// its groups).
	SkipPeerCheck Name = "skip-peer-check"
	// MissingIsEmpty takes files of a group that are gone for ones that never were (breaks G4).
	MissingIsEmpty Name = "missing-is-empty"
	// EndElsewhere lets an empty journal end at a place that the next process may have behind its records (breaks G3, G4,
	// and views).
	EndElsewhere Name = "end-elsewhere"
	// DeleteLastCopy deletes a copy that this site was not told to delete (breaks G3).
	DeleteLastCopy Name = "delete-last-copy"
	// VerifyOtherOrdinal compares the sites at different ordinals (finds differences that are not there).
	VerifyOtherOrdinal Name = "verify-other-ordinal"
	// VerifySkips leaves runs of extents out of a comparison (finds nothing).
	VerifySkips Name = "verify-skips"
	// NeedCertificate keeps a replicator from starting while its certificate cannot be used (breaks G2, G5).
	NeedCertificate Name = "need-certificate"
	// ViewAfterApply lets apply change an image before a view has the content that it overwrites (breaks a view's order).
	ViewAfterApply Name = "view-after-apply"
	// ViewForgetsExtents does not note which extents a view has of its own (breaks a view's order after a restart).
	ViewForgetsExtents Name = "view-forgets-extents"
	// ViewForgetsRecords has views take extents without records that leave the journal (breaks a view's order).
	ViewForgetsRecords Name = "view-forgets-records"
	// HistoryForgetsReach offers points that a pass of apply before a crash has gone past (breaks a view's order).
	HistoryForgetsReach Name = "history-forgets-reach"
	// HistoryUnheld offers no points of the past after a restart before the first pass of apply (loses the history).
	HistoryUnheld Name = "history-unheld"
	// YieldWithoutRanges has a site give way without the ranges that it wrote past the fork (breaks G1, G6).
	YieldWithoutRanges Name = "yield-without-ranges"
	// YieldWithoutTail has a site give way without snapshots of what it wrote past the fork (breaks G6).
	YieldWithoutTail Name = "yield-without-tail"
	// FollowYielding has a site that gives way follow one that gives way, too (breaks G6).
	FollowYielding Name = "follow-yielding"
	// NoteLateHello takes a Hello from before a peer gave way for news (says that sites diverged which have not).
	NoteLateHello Name = "note-late-hello"
	// PromoteAwaiting takes a copy in the middle of a sync for a whole one, in the decision itself (breaks G3).
	PromoteAwaiting Name = "promote-awaiting"
	// FollowFork follows a caller whose timeline forked from this site's (breaks G6).
	FollowFork Name = "follow-fork"
	// ForgetLoss counts what was lost from one ordinal behind the fork (breaks G7).
	ForgetLoss Name = "forget-loss"
	// ReleaseUnacknowledged gives back segments that the peer has not acknowledged (breaks G1 at the secondary).
	ReleaseUnacknowledged Name = "release-unacknowledged"
	// CountOwnSessions begins a session with a number that may be below its peer's (trusts a copy that lacks extents).
	CountOwnSessions Name = "count-own-sessions"
	// TakeOverUnasked lets a planned promotion go on after the demotion was taken back (breaks G6).
	TakeOverUnasked Name = "take-over-unasked"
	// ForceReachable lets csi-addons force a promotion while the primary can be heard (breaks G6).
	ForceReachable Name = "force-reachable"
	// UndoAtSecondary lets csi-addons delete the group of a copy (breaks G3).
	UndoAtSecondary Name = "undo-at-secondary"
	// TakeForeignClaim changes claims at the backup site that the operator did not make.
	TakeForeignClaim Name = "take-foreign-claim"
	// AcceptAnyNamespace lets another site make claims in system namespaces.
	AcceptAnyNamespace Name = "accept-any-namespace"
	// LeaveAtFirstLook takes a volume out of its group when its claim was not seen once (breaks G3).
	LeaveAtFirstLook Name = "leave-at-first-look"
	// LeaveWithoutVolume takes volumes out of groups whose objects are not in Kubernetes (breaks G3).
	LeaveWithoutVolume Name = "leave-without-volume"
	// TakeAnyGroup lets a ConsistencyGroup take over groups of other namespaces.
	TakeAnyGroup Name = "take-any-group"
	// AnyConfirmation forces a failover for an action that was written for another state (breaks G6).
	AnyConfirmation Name = "any-confirmation"
	// ChangeRemote replicates to another site before a person has confirmed that the copy at the present one ends
	// (breaks G3).
	ChangeRemote Name = "change-remote"
	// JoinByName gives a namespace that was made anew the groups of its predecessor (breaks G3).
	JoinByName Name = "join-by-name"
	// UndoKept takes volumes out of groups that were to be kept when the label goes (breaks G3).
	UndoKept Name = "undo-kept"
	// WaitForPeer keeps a group from ending while its peer is away (breaks G8).
	WaitForPeer Name = "wait-for-peer"
	// ActUnrecorded carries out a step of an action that is not in its record (breaks G8).
	ActUnrecorded Name = "act-unrecorded"
	// WriteAnyway writes statuses that have not changed.
	WriteAnyway Name = "write-anyway"
	// RemoveAtFirstLook removes waiting claims when their volume was not seen in its group once (breaks G3).
	RemoveAtFirstLook Name = "remove-at-first-look"
	// ForgetSeparate does not promote what was whole before it became a shard (breaks G3).
	ForgetSeparate Name = "forget-separate"
	// UnrecordedNumbers makes shards whose numbers are not in the status of their ConsistencyGroup first (breaks G1 across
	// nodes: two operators can give one number to two shards).
	UnrecordedNumbers Name = "unrecorded-numbers"
	// AnswerInEpoch answers writes behind the end of an epoch before all shards have fixed theirs (breaks G1 across
	// nodes).
	AnswerInEpoch Name = "answer-in-epoch"
	// MarkAfterExpiry puts the mark of an epoch after what it held was answered (breaks G1 across nodes).
	MarkAfterExpiry Name = "mark-after-expiry"
	// PromoteAnywhere promotes the copy of a shard with all that has arrived (breaks G1 across nodes).
	PromoteAnywhere Name = "promote-anywhere"
	// OpenAnywhere opens a shard with all that has arrived in place of the epoch (breaks G1 across nodes).
	OpenAnywhere Name = "open-anywhere"
	// ForgetDecision lets a shard that was promoted forget at which epoch, so that the others cannot follow (breaks G8).
	ForgetDecision Name = "forget-decision"
	// ReleaseBeforeReady commits an epoch when the first of its shards is ready (breaks G1 over several nodes).
	ReleaseBeforeReady Name = "release-before-ready"
	// MarkAfterRelease puts the mark of an epoch whose hold the shard gave up (breaks G1 over several nodes).
	MarkAfterRelease Name = "mark-after-release"
	// ObeyEarlierLife lets a shard obey messages for an earlier run of its process (breaks G1 over several nodes).
	ObeyEarlierLife Name = "obey-earlier-life"
	// PromoteIncomplete takes an epoch for complete when one copy has its mark (breaks G1 over several nodes).
	PromoteIncomplete Name = "promote-incomplete"
	// DemoteUncovered demotes a shard at an epoch that does not have all that it wrote (a forced promotion loses writes
	// after a demotion).
	DemoteUncovered Name = "demote-uncovered"
	// ObeyEveryCollector lets a copy take a decision of a collector that another one has overtaken (two promotions of one
	// group).
	ObeyEveryCollector Name = "obey-every-collector"
)
