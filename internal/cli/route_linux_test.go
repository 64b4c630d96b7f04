// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/heliograph-dev/heliograph/internal/apitest"
)

// The commands against a real API server, by an administrator, and by somebody who may see no pods.
func TestRouteExplainByAPI(t *testing.T) {
	env := apitest.StartEnv(t)
	c, err := clientFor(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	createSample(t, c)
	admin, viewer := writeKubeconfig(t, env.KubeConfig), addViewer(t, env, c)
	policies := filepath.Join(t.TempDir(), "policies.yaml")
	if err := os.WriteFile(policies, []byte(manyRules(2)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		kubeconfig string
		args       []string
		want       []string
	}{
		"policy explain": {admin, []string{"policy", "explain", "--from=node/node1", "--to=default/web:80"}, []string{
			"node node1 (", "ingress of default/web on node2: Allow, since no policy applies", "verdict: allowed",
		}},
		"policy explain, a dry run": {admin, []string{"policy", "explain", "--from=default/web", "--to=default/db:80", "--with-file=" + policies}, []string{
			"dry run with NetworkPolicy default/many", "verdict: allowed",
		}},
		"policy impact": {admin, []string{"policy", "impact", "-f", policies}, []string{"nothing changes: no pod has other policies"}},
		"policy status": {admin, []string{"policy", "status"}, []string{
			"there is no policy", "node1 is not asked: run policy-on-node in pod heliograph-system/agent", "node2 is not asked: no agent's pod runs on node2",
		}},
		"without a kubelet": {admin, []string{"route", "explain", "10.244.2.7", "--from=node1"}, []string{
			"pod default/web on node2", "Native via 192.168.11.253", "not asked: run kernel-route in pod heliograph-system/agent", "nothing is known",
		}},
		"without an agent": {admin, []string{"route", "explain", "10.244.1.5", "--from=node2"}, []string{
			"pod default/db on node1", "stops here: node2 has not reported",
		}},
		"everywhere, IPv6": {admin, []string{"route", "explain", "fd00:244::87"}, []string{"from node1", "VXLAN via fe80::2", "from node2", "local"}},
		"sees no pods": {viewer, []string{"route", "explain", "10.244.2.7", "--from=node1"}, []string{
			"which pod, is not known: list pods", "Native via 192.168.11.253", "not asked: find the agent's pod", "forbidden", "nothing is known",
		}},
		"paths":       {viewer, []string{"paths", "--from=node1", "-o", "json"}, []string{`"from": "node1"`, `"method": "VXLAN"`}},
		"bgp summary": {viewer, []string{"bgp", "summary"}, []string{"AS 64512", "node1 speaker", "note: node2 has not reported", "there is no BGPConfiguration default"}},
		"bgp routes, without a kubelet": {admin, []string{"bgp", "routes", "fd00:244::/56"}, []string{
			"node1 is not asked: run bgp-routes in pod heliograph-system/agent", "node2 is not asked: no agent's pod runs on node2",
		}},
		"bgp routes, sees no pods": {viewer, []string{"bgp", "routes", "--node=node1", "-o", "json"}, []string{`"notAsked": "find the agent's pod`, "forbidden", `"paths": []`}},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			args := slices.Concat([]string{"kubectl-heliograph"}, tt.args, []string{"--kubeconfig=" + tt.kubeconfig})
			if code := Main(t.Context(), args, &out, &errOut); code != 0 {
				t.Fatalf("exit code %d: %s", code, errOut.String())
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, out.String())
				}
			}
		})
	}
	t.Run("policy explain, sees no pods", func(t *testing.T) {
		var out, errOut bytes.Buffer
		code := Main(t.Context(), []string{"heliograph", "policy", "explain", "--from=default/web", "--to=default/db:80", "--kubeconfig=" + viewer}, &out, &errOut)
		if want := "so the right to list them is needed in all namespaces"; code != 1 || !strings.Contains(errOut.String(), want) {
			t.Errorf("exit code %d, %q; want %q", code, errOut.String(), want)
		}
	})
}

// createSample puts sampleFacts into the API, and an agent's pod on node1, where no kubelet is.
func createSample(t *testing.T, c client.Client) {
	t.Helper()
	f := sampleFacts("10.244.2.7", "node1")
	create := func(o client.Object) {
		t.Helper()
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	withStatus := func(o client.Object) {
		t.Helper()
		wanted := o.DeepCopyObject().(client.Object)
		create(o)
		wanted.SetResourceVersion(o.GetResourceVersion())
		if err := c.Status().Update(t.Context(), wanted); err != nil {
			t.Fatal(err)
		}
	}
	for i := range f.state.nodes {
		withStatus(&f.state.nodes[i])
	}
	for i := range f.pools {
		f.pools[i].Status.Conditions = nil
		create(&f.pools[i])
	}
	for i := range f.blocks {
		f.blocks[i].GenerateName = "block-"
		create(&f.blocks[i])
	}
	for name, ns := range f.state.statuses {
		ns.Name = name
		withStatus(&ns)
	}
	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "heliograph-system"}})
	agent := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "heliograph-system", Name: "agent", Labels: map[string]string{
			"app.kubernetes.io/name": "heliograph", "app.kubernetes.io/component": "agent",
		}},
		Spec:   corev1.PodSpec{NodeName: "node1"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, p := range append(f.pods, agent) {
		p.Spec.Containers = []corev1.Container{{Name: "agent", Image: "none"}}
		withStatus(&p)
	}
}

// addViewer adds somebody who may read nodes and heliograph's kinds, and nothing else.
func addViewer(t *testing.T, env *envtest.Environment, c client.Client) string {
	t.Helper()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "viewer"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"list"}},
		{APIGroups: []string{"heliograph.dev"}, Resources: []string{"*"}, Verbs: []string{"list"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "viewer"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "viewer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "viewer"}},
	}
	for _, o := range []client.Object{role, binding} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	user, err := env.AddUser(envtest.User{Name: "viewer"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := user.KubeConfig()
	if err != nil {
		t.Fatal(err)
	}
	return writeKubeconfig(t, kubeconfig)
}

func writeKubeconfig(t *testing.T, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
