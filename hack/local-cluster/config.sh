# Certificates and configuration files of a site and of its nodes. Sourced, not run. What is there stays: a site that is
# started again with its disks has its old identity.

# certificate NAME SUBJECT [ALTERNATIVE NAMES], signed by the site's authority in the current directory.
certificate() {
	openssl ecparam -genkey -name prime256v1 -noout -out "$1.key"
	{
		echo "basicConstraints=CA:FALSE"
		echo "keyUsage=digitalSignature,keyEncipherment"
		echo "extendedKeyUsage=clientAuth,serverAuth"
		[[ -z ${3:-} ]] || echo "subjectAltName=$3"
	} >"$1.ext"
	openssl req -new -key "$1.key" -subj "$2" 2>/dev/null |
		openssl x509 -req -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days 365 -extfile "$1.ext" -out \
			"$1.crt" 2>/dev/null
}

# client_config FILE API USER DIRECTORY: a kubeconfig with everything in it, so that it can be copied.
client_config() {
	cat >"$1" <<Y
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$2:6443", certificate-authority-data: $(base64 -w0 "$4/ca.crt")}}]
users:
- name: u
  user: {client-certificate-data: $(base64 -w0 "$4/$3.crt"), client-key-data: $(base64 -w0 "$4/$3.key")}
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
Y
}

# site_authority SITE: in <state>/SITE.pki, with <state>/SITE.kubeconfig for people.
site_authority() {
	local pki=$state/$1.pki api
	api=$(api_address "$1")
	[[ ! -e $state/$1.kubeconfig ]] || return 0
	mkdir -p "$pki"
	(
		cd "$pki"
		openssl ecparam -genkey -name prime256v1 -noout -out ca.key
		openssl req -x509 -new -key ca.key -subj "/CN=site-$1" -days 365 -out ca.crt -addext \
			keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
		openssl genrsa -out sa.key 2048 2>/dev/null
		openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
		certificate apiserver /CN=kube-apiserver \
			"DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$api"
		certificate apiserver-kubelet /O=system:masters/CN=apiserver-kubelet
		certificate admin /O=system:masters/CN=admin
		certificate controller-manager /CN=system:kube-controller-manager
		certificate scheduler /CN=system:kube-scheduler
		certificate proxy /CN=system:kube-proxy
	)
	client_config "$state/$1.kubeconfig.new" "$api" admin "$pki"
	mv "$state/$1.kubeconfig.new" "$state/$1.kubeconfig"
}

# node_config NODE writes what the node's programs read.
node_config() {
	local node=$1 site=${1:0:1} dir=$state/$1 api user
	local pki=$state/$site.pki
	api=$(api_address "$node")
	mkdir -p "$dir"/{etc/cni,log,run,manifests}
	if [[ ! -e $dir/etc/kubelet.kubeconfig ]]; then
		(
			cd "$pki"
			certificate "kubelet-$node" "/O=system:nodes/CN=system:node:$node"
			certificate "serving-$node" "/CN=$node" "DNS:$node,IP:$(node_address "$node")"
		)
		for user in controller-manager scheduler proxy; do client_config "$dir/etc/$user.kubeconfig" "$api" $user "$pki"; done
		client_config "$dir/etc/kubelet.kubeconfig" "$api" "kubelet-$node" "$pki"
	fi
	# Pods are reached by routes, not through a bridge: service addresses then work without br_netfilter.
	cat >"$dir/etc/cni/10-pods.conflist" <<Y
{"cniVersion":"1.0.0","name":"pods","plugins":[
 {"type":"ptp","ipMasq":false,
  "ipam":{"type":"host-local","dataDir":"/run/cni-ipam",
   "ranges":[[{"subnet":"$(pod_network "$node")"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
Y
	# restrict_oom_score_adj: a root without CAP_SYS_RESOURCE may not lower the score, and runc fails where it tries.
	cat >"$dir/etc/containerd.toml" <<Y
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "slipstream.test/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["$bin"]
  conf_dir = "$dir/etc/cni"
Y
	cat >"$dir/etc/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volumeplugins
staticPodPath: $dir/manifests
resolvConf: /etc/resolv.conf
tlsCertFile: $pki/serving-$node.crt
tlsPrivateKeyFile: $pki/serving-$node.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
volumeStatsAggPeriod: 10s
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
serializeImagePulls: false
maxPods: 110
Y
	# Zero: the table of connections is the whole machine's and stays as it is.
	cat >"$dir/etc/proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: $node
clusterCIDR: 10.88.0.0/16
clientConnection: {kubeconfig: $dir/etc/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
}

# write_services NODE: a file with the command line of each program, in <node>/run, which service.sh starts.
write_services() {
	local node=$1 dir=$state/$1 pki=$state/${1:0:1}.pki address
	address=$(node_address "$node")
	service() { printf 'exec %s\n' "${*:2}" >"$dir/run/$1.cmd"; }
	service containerd containerd --config "$dir/etc/containerd.toml"
	service kubelet kubelet "--kubeconfig=$dir/etc/kubelet.kubeconfig" "--config=$dir/etc/kubelet.yaml" \
		"--hostname-override=$node" "--node-ip=$address" --v=2
	service proxy kube-proxy "--config=$dir/etc/proxy.yaml"
	[[ ${node:1} == 1 ]] || return 0
	# Without fsync: nothing but this machine's power can take what the page cache has.
	service etcd etcd "--data-dir=$dir/etcd" --unsafe-no-fsync --log-level=warn \
		--listen-client-urls=http://127.0.0.1:2379 \
		--advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380
	service apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 \
		"--advertise-address=$address" \
		--service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true --authorization-mode=Node,RBAC \
		--enable-admission-plugins=NodeRestriction "--client-ca-file=$pki/ca.crt" \
		"--tls-cert-file=$pki/apiserver.crt" "--tls-private-key-file=$pki/apiserver.key" \
		"--kubelet-client-certificate=$pki/apiserver-kubelet.crt" "--kubelet-client-key=$pki/apiserver-kubelet.key" \
		--kubelet-preferred-address-types=InternalIP --service-account-issuer=https://kubernetes.default.svc \
		"--service-account-key-file=$pki/sa.pub" "--service-account-signing-key-file=$pki/sa.key" \
		"${SLIPSTREAM_APISERVER_ARGS:-}"
	service controller-manager kube-controller-manager "--kubeconfig=$dir/etc/controller-manager.kubeconfig" \
		--leader-elect=false \
		--use-service-account-credentials "--service-account-private-key-file=$pki/sa.key" "--root-ca-file=$pki/ca.crt" \
		--profiling=false "--cluster-signing-cert-file=$pki/ca.crt" "--cluster-signing-key-file=$pki/ca.key"
	service scheduler kube-scheduler "--kubeconfig=$dir/etc/scheduler.kubeconfig" --leader-elect=false
}
