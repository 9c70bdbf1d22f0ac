package main

var boards = []board{groupBoard, siteBoard, fleetBoard}

var (
	yesNo     = map[string]string{"0": "no", "1": "yes"}
	condition = map[string]string{"-1": "unknown", "0": "False", "1": "True"}
)

var groupBoard = board{
	name: "group", uid: "slipstream-group", title: "Slipstream: group",
	about: "One consistency group, at both sites if Prometheus reads both.",
	variables: []variable{
		{"group", "Group", "label_values(slipstream_group_primary, group)"},
	},
	rows: []row{
		{"Now", []panel{
			{kind: number, title: "Primary at", about: "The peer is the other site.", width: 6, words: yesNo,
				queries: []query{{`slipstream_group_primary{group=~"$group"}`, "{{group}} {{instance}}"}}},
			{kind: number, title: "State", width: 6, words: map[string]string{"1": "current"},
				queries: []query{{`slipstream_group_state{group=~"$group"} == 1`, "{{group}} {{instance}}: {{state}}"}}},
			{kind: number, title: "Lag", about: "The copy has every write that is older than this.", unit: "s", width: 4,
				queries: []query{{`slipstream_group_lag_seconds{group=~"$group"}`, "{{group}} {{instance}}"}}},
			{kind: number, title: "Promotable", about: "A forced promotion would give one consistent instant.", width: 4,
				words:   yesNo,
				queries: []query{{`slipstream_group_promotable{group=~"$group"}`, "{{group}} {{instance}}"}}},
			{kind: number, title: "Connected", width: 4, words: yesNo,
				queries: []query{{`slipstream_group_connected{group=~"$group"}`, "{{group}} {{instance}}"}}},
		}},
		{"Copy", []panel{
			{title: "Lag and RPO target", unit: "s", width: 12, queries: []query{
				{`slipstream_group_lag_seconds{group=~"$group"}`, "lag {{group}} {{instance}}"},
				{`slipstream_group_rpo_target_seconds{group=~"$group"} > 0`, "target {{group}} {{instance}}"}}},
			{title: "What the copy lacks", unit: "bytes", width: 12, queries: []query{
				{`slipstream_group_lag_bytes{group=~"$group"}`, "lag {{group}} {{instance}}"},
				{`slipstream_group_change_map_bytes{group=~"$group"}`, "change map {{group}} {{instance}}"}}},
			{title: "Sync", about: "The first copy, or a catch-up.", unit: "bytes", width: 12, queries: []query{
				{`slipstream_group_sync_done_bytes{group=~"$group"}`, "done {{group}} {{instance}}"},
				{`slipstream_group_sync_total_bytes{group=~"$group"}`, "total {{group}} {{instance}}"}}},
			{title: "Link", about: "Records that are sent to the peer.", unit: "binBps", width: 12, queries: []query{
				{`rate(slipstream_group_shipped_bytes_total{group=~"$group"}[$__rate_interval])`,
					"before compression {{group}} {{instance}}"},
				{`rate(slipstream_group_wire_bytes_total{group=~"$group"}[$__rate_interval])`, "sent {{group}} {{instance}}"},
				{`slipstream_group_ship_limit_bytes_per_second{group=~"$group"} > 0`, "limit {{group}} {{instance}}"}}},
		}},
		{"Journal and images", []panel{
			{title: "Journal used", unit: "percentunit", width: 12, queries: []query{
				{`slipstream_group_journal_used_ratio{group=~"$group"}`, "{{group}} {{instance}}"}}},
			{title: "Ordinals a second", unit: "wps", width: 12, queries: []query{
				{`rate(slipstream_group_head_ordinal{group=~"$group"}[$__rate_interval])`, "written {{group}} {{instance}}"},
				{`rate(slipstream_group_durable_ordinal{group=~"$group"}[$__rate_interval])`, "durable {{group}} {{instance}}"},
				{`rate(slipstream_group_acknowledged_ordinal{group=~"$group"}[$__rate_interval])`,
					"acknowledged {{group}} {{instance}}"},
				{`rate(slipstream_group_applied_ordinal{group=~"$group"}[$__rate_interval])`,
					"applied {{group}} {{instance}}"}}},
			{title: "Not yet in the images", unit: "bytes", width: 12, queries: []query{
				{`slipstream_group_unapplied_bytes{group=~"$group"}`, "{{pvc_namespace}}/{{pvc}} {{volume}} {{instance}}"}}},
			{title: "History", about: "How far the oldest recovery point lies before now.", unit: "s", width: 12,
				queries: []query{
					{`slipstream_group_history_seconds{group=~"$group"}`, "kept {{group}} {{instance}}"},
					{`slipstream_group_history_target_seconds{group=~"$group"} > 0`, "asked for {{group}} {{instance}}"}}},
		}},
		{"Views, snapshots, comparisons", []panel{
			{title: "Views", width: 8, queries: []query{
				{`slipstream_group_views{group=~"$group"}`, "open {{group}} {{instance}}"},
				{`slipstream_group_views_failed{group=~"$group"}`, "failed {{group}} {{instance}}"},
				{`slipstream_group_cuts_running{group=~"$group"}`, "snapshots being copied {{group}} {{instance}}"}}},
			{title: "Differing extents", about: "As comparisons of both sites found.", width: 8, queries: []query{
				{`slipstream_group_verify_differing_extents{group=~"$group"}`, "{{group}} {{instance}}"}}},
			{title: "Clock of the peer", about: "Positive: it is ahead.", unit: "s", width: 8, queries: []query{
				{`slipstream_group_clock_difference_seconds{group=~"$group"}`, "{{group}} {{instance}}"}}},
		}},
		{"Claims and conditions", []panel{
			{kind: list, title: "Volumes", width: 12, queries: []query{
				{`max by (group, volume, pvc_namespace, pvc) (slipstream_group_volume_info{group=~"$group"})`, ""}}},
			{kind: list, title: "Conditions of the ConsistencyGroup", width: 12, words: condition, queries: []query{
				{`min by (namespace, group, condition) (slipstream_consistency_group_condition{group=~"$group"})`, ""}}},
		}},
	},
}

var siteBoard = board{
	name: "site", uid: "slipstream-site", title: "Slipstream: site",
	about: "Nodes, pools, ports and certificates of a site, and how long reads, writes and calls take.",
	variables: []variable{
		{"instance", "Instance", "label_values(slipstream_certificate_expiry_timestamp_seconds, instance)"},
	},
	rows: []row{
		{"Nodes", []panel{
			{kind: list, title: "Nodes", about: "As the controller and the operator reach them.", width: 8, words: yesNo,
				queries: []query{{`min by (node, retired) (slipstream_controller_node_up)`, ""}}},
			{title: "Free space of pools", unit: "percentunit", width: 8, queries: []query{
				{`slipstream_pool_available_bytes / slipstream_pool_size_bytes`, "{{instance}}"}}},
			{title: "Volumes", width: 8, queries: []query{
				{`slipstream_pool_volumes`, "in the pool {{instance}}"},
				{`sum by (instance) (slipstream_volume_staged)`, "staged {{instance}}"}}},
		}},
		{"Reads and writes of replicable volumes", []panel{
			{title: "Operations a second", unit: "ops", width: 8, queries: []query{
				{`sum by (instance, operation) (rate(slipstream_shim_operation_seconds_count{instance=~"$instance"}` +
					`[$__rate_interval]))`, "{{operation}} {{instance}}"}}},
			{title: "Time of an operation, 99th percentile", unit: "s", width: 8, queries: []query{
				{`histogram_quantile(0.99, sum by (le, instance, operation) (rate(` +
					`slipstream_shim_operation_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`,
					"{{operation}} {{instance}}"}}},
			{title: "Errors and delays", unit: "ops", width: 8, queries: []query{
				{`sum by (instance, operation) (rate(slipstream_shim_operation_seconds_count{instance=~"$instance", ` +
					`result="error"}[$__rate_interval]))`, "errors {{operation}} {{instance}}"},
				{`sum by (instance) (rate(slipstream_volume_delayed_operations_total{instance=~"$instance"}` +
					`[$__rate_interval]))`, "delayed by a limit {{instance}}"}}},
			{title: "Journal in memory", unit: "bytes", width: 12, queries: []query{
				{`slipstream_journal_memory_bytes{instance=~"$instance"}`, "used {{instance}}"},
				{`slipstream_journal_memory_limit_bytes{instance=~"$instance"}`, "limit {{instance}}"}}},
			{title: "Records read", unit: "ops", width: 12, queries: []query{
				{`rate(slipstream_journal_read_records_total{instance=~"$instance"}[$__rate_interval])`,
					"from {{source}} {{instance}}"}}},
		}},
		{"Calls", []panel{
			{title: "Calls of Kubernetes, 99th percentile", unit: "s", width: 12, queries: []query{
				{`histogram_quantile(0.99, sum by (le, method_name) (rate(csi_plugin_operations_seconds_bucket` +
					`{driver_name="csi.slipstream.dev"}[$__rate_interval])))`, "{{method_name}}"}}},
			{title: "Calls that failed", unit: "ops", width: 12, queries: []query{
				{`sum by (method_name, grpc_status_code) (rate(csi_plugin_operations_seconds_count` +
					`{driver_name="csi.slipstream.dev", grpc_status_code!="OK"}[$__rate_interval]))`,
					"{{method_name}} {{grpc_status_code}}"}}},
		}},
		{"Link, ports and certificates", []panel{
			{title: "Gateway", width: 8, queries: []query{
				{`slipstream_gateway_streams`, "streams {{peer}} to {{node}}"},
				{`sum by (peer, reason) (increase(slipstream_gateway_refusals_total[$__rate_interval]))`,
					"refused {{peer}} {{reason}}"},
				{`sum(increase(slipstream_gateway_refused_connections_total[$__rate_interval]))`, "strangers"},
				{`sum by (node) (increase(slipstream_gateway_unanswered_total[$__rate_interval]))`, "no answer of {{node}}"}}},
			{title: "Connections", width: 8, queries: []query{
				{`slipstream_port_connections{instance=~"$instance"}`, "{{port}} {{instance}}"},
				{`increase(slipstream_port_dropped_connections_total{instance=~"$instance"}[$__rate_interval])`,
					"dropped {{port}} {{reason}} {{instance}}"}}},
			{title: "Certificates end in", unit: "s", width: 8, queries: []query{
				{`slipstream_certificate_expiry_timestamp_seconds{instance=~"$instance"} - time()`, "{{instance}}"}}},
		}},
	},
}

var fleetBoard = board{
	name: "fleet", uid: "slipstream-fleet", title: "Slipstream: fleet",
	about: "All groups of all sites that Prometheus reads: what is protected, what lags, and what needs a person.",
	rows: []row{
		{"What needs a person", []panel{
			{kind: list, title: "Alerts", about: "docs/alerts has a page for each.", width: 16, queries: []query{
				{`ALERTS{alertname=~"Slipstream.*", alertstate="firing"}`, ""}}},
			{kind: list, title: "Newest actions", width: 8, queries: []query{
				{`max by (namespace, group, action, type, phase) (slipstream_group_last_action)`, ""}}},
		}},
		{"Protection", []panel{
			{kind: number, title: "Claims that are protected", width: 6, queries: []query{
				{`sum(slipstream_claims_protected)`, ""}}},
			{kind: number, title: "Claims that are not, by reason", width: 12, queries: []query{
				{`sum by (reason) (slipstream_claims_unprotected)`, "{{reason}}"}}},
			{kind: number, title: "Groups that miss their target", width: 6, queries: []query{
				{`sum(slipstream_group_lagging and on (group, peer, instance) slipstream_group_primary == 1)`, ""}}},
			{title: "Groups by state", width: 12, queries: []query{
				{`sum by (state) (slipstream_group_state and on (group, peer, instance) slipstream_group_primary == 1)`,
					"{{state}}"}}},
			{title: "The largest lags", unit: "s", width: 12, queries: []query{
				{`topk(10, slipstream_group_lag_seconds and on (group, peer, instance) slipstream_group_primary == 1)`,
					"{{group}} to {{peer}}"}}},
		}},
		{"Groups", []panel{
			{kind: list, title: "Lag", unit: "s", width: 12, queries: []query{
				{`sort_desc(max by (group, peer) (slipstream_group_lag_seconds and on (group, peer, instance) ` +
					`slipstream_group_primary == 1))`, ""}}},
			{kind: list, title: "Conditions that are not True", width: 12, words: condition, queries: []query{
				{`min by (namespace, group, condition) (slipstream_consistency_group_condition) != 1`, ""}}},
		}},
		{"Sites", []panel{
			{kind: list, title: "Conditions of RemoteSites", width: 12, words: condition, queries: []query{
				{`min by (remote_site, condition) (slipstream_remote_site_condition)`, ""}}},
			{title: "Bytes between the sites", unit: "binBps", width: 12, queries: []query{
				{`sum by (peer) (rate(slipstream_group_wire_bytes_total[$__rate_interval]))`, "to {{peer}}"}}},
		}},
	},
}
