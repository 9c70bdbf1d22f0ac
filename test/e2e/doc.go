// Package e2e shows what Slipstream does in two real Kubernetes clusters. Its tests have the build tag e2e, since they
// need the clusters that hack/e2e.sh brings up: `make e2e` on this machine's own, `make e2e-kind` on kind's.
//
// They are one test with steps in an order: the installation comes first, the destruction of a site last. What each
// step has shown stands in a table at the end, which also goes to $SLIPSTREAM_E2E_RESULTS/summary.md. Objects are made
// through kubectl and helm, as a person would make them.
//
// The steps never assert on how long something takes. What they wait for has a deadline that is far off, because the
// machine may be slow and a kubelet looks at things only now and then.
package e2e
