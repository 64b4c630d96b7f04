// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apitest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// What users can get wrong by themselves, the API server refuses, and says why.
func TestKinds(t *testing.T) {
	c, err := client.New(Start(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("create", func(t *testing.T) { testCreate(t, c) })
	t.Run("policies", func(t *testing.T) { testPolicies(t, c) })
	t.Run("update", func(t *testing.T) { testUpdate(t, c) })
	t.Run("defaults", func(t *testing.T) { testDefaults(t, c) })
	t.Run("samples", func(t *testing.T) { testSamples(t, c) })
	t.Run("status", func(t *testing.T) { testStatus(t, c) })
	t.Run("manifests", func(t *testing.T) { testManifests(t, c) })
}

// What `kubectl apply -k config/default` installs is accepted as a whole, without unknown fields.
func testManifests(t *testing.T, c client.Client) {
	kubectl := filepath.Join(findAssets(), "kubectl")
	if !executable(kubectl) {
		kubectl = "kubectl"
	}
	out, err := exec.Command(kubectl, "kustomize", filepath.Join(Root(), "config", "default")).Output()
	if err != nil {
		t.Fatalf("kubectl kustomize config/default: %v", err)
	}
	strict := client.WithFieldValidation(c, metav1.FieldValidationStrict)
	kinds := map[string]int{}
	for _, u := range decode(t, bytes.NewReader(out)) {
		kinds[u.GetKind()]++
		if err := strict.Create(t.Context(), u); client.IgnoreAlreadyExists(err) != nil {
			t.Errorf("%s %s: %v", u.GetKind(), u.GetName(), err)
		}
	}
	if kinds["CustomResourceDefinition"] != 12 || kinds["Deployment"] != 1 || kinds["DaemonSet"] != 1 {
		t.Errorf("config/default has %v", kinds)
	}
}

// refused says whether the error is a refusal with this text; an empty text means no error.
func refused(err error, text string) bool {
	if text == "" {
		return err == nil
	}
	return apierrors.IsInvalid(err) && strings.Contains(err.Error(), text)
}

func object(t *testing.T, kind, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{}}
	if spec != "" {
		var s map[string]any
		if err := yaml.Unmarshal([]byte(spec), &s); err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		u.Object["spec"] = s
	}
	u.SetAPIVersion("heliograph.dev/v1alpha1")
	u.SetKind(kind)
	u.SetName(name)
	return u
}

func testCreate(t *testing.T, c client.Client) {
	const (
		noNetwork = "cidr must be a network in CIDR notation without host bits, such as 10.244.0.0/16"
		blockSize = "blockSize must be 20 to 31 for an IPv4 pool and 112 to 127 for an IPv6 pool"
		tooLarge  = "blockSize is larger than the pool: the prefix length of a block must be at least that of cidr"
		peer      = "peerIP: 192.0.2.1, asNumber: 65101"
	)
	for _, tt := range []struct{ what, kind, name, spec, want string }{
		{"IPv4", "IPPool", "", "{cidr: 10.244.0.0/16}", ""},
		{"IPv6", "IPPool", "", "{cidr: 'fd00:244::/56'}", ""},
		{"largest and smallest blocks", "IPPool", "", "{cidr: 10.0.0.0/8, blockSize: 20}", ""},
		{"smallest blocks", "IPPool", "", "{cidr: 10.244.0.0/16, blockSize: 31}", ""},
		{"smallest blocks, IPv6", "IPPool", "", "{cidr: 'fd00::/112', blockSize: 127}", ""},
		{"one block", "IPPool", "", "{cidr: 10.244.0.0/26}", ""},
		{"no cidr", "IPPool", "", "{blockSize: 26}", "spec.cidr: Required value"},
		{"no spec", "IPPool", "", "", "spec: Required value"},
		{"cidr is none", "IPPool", "", "{cidr: ten}", noNetwork},
		{"cidr is an address", "IPPool", "", "{cidr: 10.244.0.0}", noNetwork},
		{"cidr with host bits", "IPPool", "", "{cidr: 10.244.0.1/16}", noNetwork},
		{"cidr with host bits, IPv6", "IPPool", "", "{cidr: 'fd00:244::1/56'}", noNetwork},
		{"cidr with leading zeros", "IPPool", "", "{cidr: 010.244.0.0/16}", noNetwork},
		{"IPv4 in IPv6", "IPPool", "", "{cidr: '::ffff:10.0.0.0/120'}", noNetwork},
		{"block too large", "IPPool", "", "{cidr: 10.0.0.0/8, blockSize: 19}", blockSize},
		{"block of one address", "IPPool", "", "{cidr: 10.244.0.0/16, blockSize: 32}", blockSize},
		{"IPv4 block in an IPv6 pool", "IPPool", "", "{cidr: 'fd00::/56', blockSize: 26}", blockSize},
		{"IPv6 block in an IPv4 pool", "IPPool", "", "{cidr: 10.244.0.0/16, blockSize: 122}", blockSize},
		{"block of one address, IPv6", "IPPool", "", "{cidr: 'fd00::/112', blockSize: 128}", blockSize},
		{"block larger than the pool", "IPPool", "", "{cidr: 10.244.0.0/25, blockSize: 24}", tooLarge},
		{"default block larger than the pool", "IPPool", "", "{cidr: 10.244.0.0/27}", tooLarge},
		{"default block larger than the pool, IPv6", "IPPool", "", "{cidr: 'fd00::/124'}", tooLarge},
		{"encapsulation", "IPPool", "", "{cidr: 10.244.0.0/16, encapsulation: GRE}", `supported values: "Auto", "Never", "IPIP", "IPIPCrossSubnet", "VXLAN", "VXLANCrossSubnet"`},
		{"long selector", "IPPool", "", "{cidr: 10.244.0.0/16, nodeSelector: '" + strings.Repeat("x", 1025) + "'}", "may not be more than 1024"},

		{"a block", "IPBlock", "10-244-0-0-26", "{cidr: 10.244.0.0/26, pool: p, node: n1, primary: true}", ""},
		{"a block with host bits", "IPBlock", "", "{cidr: 10.244.0.1/26, pool: p, node: n1}", "cidr must be a network in CIDR notation without host bits"},
		{"a block of nobody", "IPBlock", "", "{cidr: 10.244.0.0/26, pool: p}", "spec.node: Required value"},

		{"all defaults", "BGPConfiguration", "default", "{}", ""},
		{"another name", "BGPConfiguration", "mine", "{}", "the name of the one BGPConfiguration is 'default'"},
		{"AS 0", "BGPConfiguration", "default", "{asNumber: 0}", "should be greater than or equal to 1"},
		{"AS too large", "BGPConfiguration", "default", "{asNumber: 4294967295}", "should be less than or equal to 4294967294"},
		{"port", "BGPConfiguration", "default", "{listenPort: 65536}", "should be less than or equal to 65535"},
		{"hold time too short", "BGPConfiguration", "default", "{holdTime: 2s}", "holdTime must be 3s to 65535s (RFC 4271 §4.2)"},
		{"hold time no duration", "BGPConfiguration", "default", "{holdTime: soon}", "holdTime"},
		{"keepalive too short", "BGPConfiguration", "default", "{keepaliveTime: 500ms}", "keepaliveTime must be at least 1s"},
		{"keepalive as long as hold", "BGPConfiguration", "default", "{holdTime: 9s, keepaliveTime: 9s}", "keepaliveTime must be less than holdTime"},
		{"connect retry", "BGPConfiguration", "default", "{connectRetryTime: 1s}", "connectRetryTime must be 2s to 65535s"},
		{"restart time", "BGPConfiguration", "default", "{gracefulRestart: {restartTime: 4096s}}", "restartTime must be 1s to 4095s"},
		{"BFD", "BGPConfiguration", "default", "{bfd: {enabled: true}}", ""},
		{"BFD, all fields", "BGPConfiguration", "default", "{bfd: {enabled: true, transmitInterval: 10ms, receiveInterval: 60s, detectMultiplier: 2}}", ""},
		{"BFD transmit interval", "BGPConfiguration", "default", "{bfd: {transmitInterval: 9ms}}", "transmitInterval must be 10ms to 60s"},
		{"BFD receive interval", "BGPConfiguration", "default", "{bfd: {receiveInterval: 61s}}", "receiveInterval must be 10ms to 60s"},
		{"BFD multiplier", "BGPConfiguration", "default", "{bfd: {detectMultiplier: 256}}", "should be less than or equal to 255"},
		{"password without key", "BGPConfiguration", "default", "{nodeMeshPassword: {secretKeyRef: {name: x}}}", "key: Required value"},

		{"a peer", "BGPPeer", "", "{" + peer + "}", ""},
		{"a peer, IPv6", "BGPPeer", "", "{peerIP: 'fd00::1', asNumber: 4200000000}", ""},
		{"no address", "BGPPeer", "", "{asNumber: 65101}", "spec.peerIP: Required value"},
		{"no AS", "BGPPeer", "", "{peerIP: 192.0.2.1}", "spec.asNumber: Required value"},
		{"address is a name", "BGPPeer", "", "{peerIP: tor.example.com, asNumber: 65101}", "peerIP must be an IP address"},
		{"address is a network", "BGPPeer", "", "{peerIP: 192.0.2.0/24, asNumber: 65101}", "peerIP must be an IP address"},
		{"address of last resort", "BGPPeer", "", "{peerIP: 192.0.2.256, asNumber: 65101}", "peerIP must be an IP address"},
		{"node and nodeSelector", "BGPPeer", "", "{" + peer + ", node: node1, nodeSelector: 'has(x)'}", "node and nodeSelector exclude each other"},
		{"AS 0", "BGPPeer", "", "{peerIP: 192.0.2.1, asNumber: 0}", "should be greater than or equal to 1"},
		{"hold time too short", "BGPPeer", "", "{" + peer + ", holdTime: 1s}", "holdTime must be 3s to 65535s"},
		{"keepalive longer than hold", "BGPPeer", "", "{" + peer + ", holdTime: 9s, keepaliveTime: 10s}", "keepaliveTime must be less than holdTime"},
		{"connect retry", "BGPPeer", "", "{" + peer + ", connectRetryTime: 1s}", "connectRetryTime must be 2s to 65535s"},
		{"restart time", "BGPPeer", "", "{" + peer + ", gracefulRestart: {restartTime: 0s}}", "restartTime must be 1s to 4095s"},
		{"BFD", "BGPPeer", "", "{" + peer + ", bfd: {enabled: true, transmitInterval: 60s, receiveInterval: 10ms, detectMultiplier: 255}}", ""},
		{"BFD transmit interval", "BGPPeer", "", "{" + peer + ", bfd: {transmitInterval: 61s}}", "transmitInterval must be 10ms to 60s"},
		{"BFD receive interval", "BGPPeer", "", "{" + peer + ", bfd: {receiveInterval: 9ms}}", "receiveInterval must be 10ms to 60s"},
		{"BFD interval no duration", "BGPPeer", "", "{" + peer + ", bfd: {receiveInterval: soon}}", "receiveInterval"},
		{"BFD multiplier", "BGPPeer", "", "{" + peer + ", bfd: {detectMultiplier: 1}}", "should be greater than or equal to 2"},
		{"multihop", "BGPPeer", "", "{" + peer + ", ebgpMultihop: 256}", "should be less than or equal to 255"},
		{"own AS", "BGPPeer", "", "{" + peer + ", numAllowedLocalASNumbers: 11}", "should be less than or equal to 10"},
		{"accepted prefixes", "BGPPeer", "", "{" + peer + ", acceptPrefixes: [0.0.0.0/0, '::/0']}", ""},
		{"accepted prefix with host bits", "BGPPeer", "", "{" + peer + ", acceptPrefixes: [10.0.0.1/8]}", "acceptPrefixes must be networks in CIDR notation without host bits"},
		{"accepted prefix twice", "BGPPeer", "", "{" + peer + ", acceptPrefixes: [10.0.0.0/8, 10.0.0.0/8]}", "Duplicate value"},

		{"for all", "FelixConfiguration", "default", "{mtu: 1500}", ""},
		{"for one node", "FelixConfiguration", "node.node1", "{mtu: 9000}", ""},
		{"for something else", "FelixConfiguration", "node1", "{mtu: 9000}", "a FelixConfiguration is named 'default' or 'node.NAME'"},
		{"MTU", "FelixConfiguration", "default", "{mtu: 1279}", "should be greater than or equal to 1280"},
		{"VNI", "FelixConfiguration", "default", "{vxlanVNI: 16777216}", "should be less than or equal to 16777215"},
		{"VXLAN port", "FelixConfiguration", "default", "{vxlanPort: 0}", "should be greater than or equal to 1"},
		{"refresh", "FelixConfiguration", "default", "{routeRefreshInterval: 4s}", "routeRefreshInterval must be at least 5s"},
		{"cooldown", "FelixConfiguration", "default", "{ipamCooldown: 2h}", "ipamCooldown must be 0s to 1h"},
		{"resolvers", "FelixConfiguration", "default", `{dnsTrustedServers: [192.0.2.53, "2001:db8::53", "k8s-service:kube-dns", "k8s-service:kube-system/kube-dns"]}`, ""},
		{"no resolvers", "FelixConfiguration", "default", "{dnsTrustedServers: []}", ""},
		{"resolver by name", "FelixConfiguration", "default", "{dnsTrustedServers: [dns.example.com]}", "must be an IP address, or k8s-service:NAMESPACE/NAME"},
		{"resolver with port", "FelixConfiguration", "default", `{dnsTrustedServers: ["192.0.2.53:53"]}`, "must be an IP address, or k8s-service:NAMESPACE/NAME"},
		{"service without name", "FelixConfiguration", "default", `{dnsTrustedServers: ["k8s-service:kube-system/"]}`, "must be an IP address, or k8s-service:NAMESPACE/NAME"},
		{"no cooldown", "FelixConfiguration", "default", "{ipamCooldown: 0s}", ""},

		{"first tier", "Tier", "", "{order: -5, defaultAction: Pass}", ""},
		{"built in", "Tier", "default", "{order: 5}", "the tiers default, kube-admin and kube-baseline are there without an object"},
		{"that allows", "Tier", "", "{defaultAction: Allow}", `supported values: "Deny", "Pass"`},
		{"both families", "GlobalNetworkSet", "", "{nets: [10.0.0.0/8, 192.0.2.1, 'fd00::/8', '2001:db8::1']}", ""},
		{"no network", "GlobalNetworkSet", "", "{nets: [10.0.0.0/33]}", "nets must be networks in CIDR notation, or addresses"},
		{"nothing", "GlobalNetworkPolicy", "", "{}", ""},
		{"tier of others", "GlobalNetworkPolicy", "", "{tier: kube-admin}", "kube-admin and kube-baseline are the tiers of ClusterNetworkPolicies"},
		{"types", "GlobalNetworkPolicy", "", "{types: [Sideways]}", `supported values: "Ingress", "Egress"`},
		{"enforcement", "GlobalNetworkPolicy", "", "{enforcement: Perhaps}", `supported values: "Enforce", "Audit"`},
	} {
		t.Run(tt.kind+"/"+tt.what, func(t *testing.T) {
			name := tt.name
			if name == "" {
				name = "test"
			}
			u := object(t, tt.kind, name, tt.spec)
			err := c.Create(t.Context(), u)
			if !refused(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err == nil {
				remove(t, c, u)
			}
		})
	}
}

// Selectors that cannot be read are refused where they would decide whom a policy concerns, and so are
// rules that no packet can match.
func testPolicies(t *testing.T, c client.Client) {
	const (
		none   = "is no selector, such as: app == 'web'"
		global = "global() stands in a namespaceSelector only"
		icmp   = "icmp and notICMP need the protocol ICMP or ICMPv6"
		ports  = "ports need a protocol that has ports"
	)
	for _, tt := range []struct{ spec, want string }{
		{`{selector: ''}`, ""},
		{`{selector: ' all() '}`, ""},
		{`{selector: "a == 'b'"}`, ""},
		{`{selector: 'a=="b"'}`, ""},
		{`{selector: "a.b/c-d != '' && has(x) || !(y in {'1', \"2\"} && z not in{}) || (p starts with 'q') || r ends with 's' || t contains 'u'"}`, ""},
		{`{selector: "((has(a)))"}`, ""},
		{`{selector: "a = 'b'"}`, none},
		{`{selector: "a == b"}`, none},
		{`{selector: "a == 'b' has(c)"}`, none},
		{`{selector: "a == 'b' &&"}`, none},
		{`{selector: "(a == 'b'"}`, none},
		{`{selector: "a in 'b'"}`, none},
		{`{selector: "a startswith 'b'"}`, none},
		{`{serviceAccountSelector: "a"}`, none},
		{`{selector: "global()"}`, global},
		{`{selector: "` + strings.Repeat("x", 1025) + `"}`, "may not be more than 1024"},
		{`{ingress: [{}]}`, "spec.ingress[0].action: Required value"},
		{`{ingress: [{action: Reject}]}`, `supported values: "Allow", "Deny", "Pass", "Log"`},
		{`{ingress: [{action: Allow, ipVersion: 5}]}`, "supported values: \"4\", \"6\""},
		{`{ingress: [{action: Allow, protocol: TCP, destination: {ports: [80, "8080:8090", http]}}]}`, ""},
		{`{ingress: [{action: Allow, protocol: 132, source: {notPorts: [0, 65535]}}]}`, ""},
		{`{ingress: [{action: Allow, protocol: tcp}]}`, "should match '^(TCP|UDP|"},
		{`{ingress: [{action: Allow, protocol: TCP, destination: {ports: [65536]}}]}`, "a port is a number from 0 to 65535"},
		{`{ingress: [{action: Allow, protocol: TCP, destination: {ports: [-1]}}]}`, "a port is a number from 0 to 65535"},
		{`{ingress: [{action: Allow, protocol: TCP, destination: {ports: ["80-90"]}}]}`, ""},
		{`{ingress: [{action: Allow, protocol: TCP, destination: {ports: ["80,90"]}}]}`, "ports[0]: Invalid value"},
		{`{ingress: [{action: Allow, protocol: ICMP, destination: {ports: [80]}}]}`, ports},
		{`{egress: [{action: Allow, destination: {notPorts: [80]}}]}`, ports},
		{`{ingress: [{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}}]}`, ""},
		{`{ingress: [{action: Allow, protocol: 58, notICMP: {type: 128}}]}`, ""},
		{`{ingress: [{action: Allow, protocol: ICMP, icmp: {code: 0}}]}`, "an ICMP code needs a type"},
		{`{ingress: [{action: Allow, icmp: {type: 8}}]}`, icmp},
		{`{ingress: [{action: Allow, protocol: TCP, icmp: {type: 8}}]}`, icmp},
		{`{ingress: [{action: Allow, protocol: ICMP, ipVersion: 6}]}`, "ICMP is of IPv4"},
		{`{ingress: [{action: Allow, protocol: ICMPv6, ipVersion: 4}]}`, "ICMPv6 is of IPv6"},
		{`{ingress: [{action: Allow, source: {nets: [10.0.0.0/8, "fd00::1"], notNets: ["::/0"]}}]}`, ""},
		{`{ingress: [{action: Allow, source: {nets: [ten]}}]}`, "nets must be networks in CIDR notation, or addresses"},
		{`{egress: [{action: Allow, destination: {services: {name: dns, namespace: kube-system}}}]}`, ""},
		{`{egress: [{action: Allow, destination: {services: {namespace: kube-system}}}]}`, "name: Required value"},
		{`{egress: [{action: Allow, destination: {services: {name: dns}, selector: "has(x)"}}]}`, "services exclude all other conditions on the same end"},
		{`{egress: [{action: Allow, protocol: TCP, destination: {domains: [Example.com, "*.example.com."], ports: [443]}}]}`, ""},
		{`{egress: [{action: Allow, destination: {domains: ["a.*.com"]}}]}`, "domains[0]: Invalid value"},
		{`{egress: [{action: Allow, destination: {domains: [com]}}]}`, "domains[0]: Invalid value"},
		{`{egress: [{action: Allow, destination: {domains: [example.com], nets: [10.0.0.0/8]}}]}`, "domains exclude all other conditions on the same end but ports"},
		{`{egress: [{action: Allow, source: {domains: [example.com]}}]}`, "only destinations have domains"},
		{`{egress: [{action: Deny, destination: {domains: [example.com]}}]}`, "only rules that allow have domains"},
		{`{ingress: [{action: Allow, destination: {domains: [example.com]}}]}`, "only egress rules have domains"},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			u := object(t, "NetworkPolicy", "test", tt.spec)
			u.SetNamespace("default")
			err := c.Create(t.Context(), u)
			if !refused(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err == nil {
				remove(t, c, u)
			}
		})
	}
}

func testUpdate(t *testing.T, c client.Client) {
	const hands = "a block cannot change hands: only releasing may change"
	for _, tt := range []struct{ what, kind, name, spec, patch, want string }{
		{"cidr", "IPPool", "p", "{cidr: 10.244.0.0/16}", `{"spec":{"cidr":"10.245.0.0/16"}}`, "cidr is immutable: create another pool and delete this one"},
		{"blockSize", "IPPool", "p", "{cidr: 10.244.0.0/16, blockSize: 26}", `{"spec":{"blockSize":27}}`, "blockSize is immutable"},
		{"blockSize set later", "IPPool", "p", "{cidr: 10.244.0.0/16}", `{"spec":{"blockSize":26}}`, "blockSize is immutable"},
		{"blockSize removed", "IPPool", "p", "{cidr: 10.244.0.0/16, blockSize: 27}", `{"spec":{"blockSize":null}}`, "blockSize is immutable"},
		{"the rest", "IPPool", "p", "{cidr: 10.244.0.0/16, blockSize: 26}", `{"spec":{"encapsulation":"Never","natOutgoing":true,"disabled":true,"nodeSelector":"has(x)"}}`, ""},
		{"node", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1}", `{"spec":{"node":"n2"}}`, hands},
		{"pool", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1}", `{"spec":{"pool":"q"}}`, hands},
		{"cidr", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1}", `{"spec":{"cidr":"10.244.0.64/26"}}`, hands},
		{"primary", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1, primary: false}", `{"spec":{"primary":true}}`, hands},
		{"primary, not given before", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1}", `{"spec":{"primary":true}}`, hands},
		{"releasing", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1, primary: false}", `{"spec":{"releasing":true}}`, ""},
		{"releasing, primary not given", "IPBlock", "b", "{cidr: 10.244.0.0/26, pool: p, node: n1}", `{"spec":{"releasing":true}}`, ""},
	} {
		t.Run(tt.kind+"/"+tt.what, func(t *testing.T) {
			u := object(t, tt.kind, tt.name, tt.spec)
			if err := c.Create(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			defer remove(t, c, u)
			err := c.Patch(t.Context(), u.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(tt.patch)))
			if !refused(err, tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A user who writes nothing gets what the field's description promises.
func testDefaults(t *testing.T, c client.Client) {
	u := object(t, "BGPConfiguration", "default", "{}")
	if err := c.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	defer remove(t, c, u)
	for field, want := range map[string]any{"asNumber": int64(64512), "listenPort": int64(179), "nodeToNodeMeshEnabled": true} {
		if got := u.Object["spec"].(map[string]any)[field]; got != want {
			t.Errorf("BGPConfiguration spec.%s = %v, want %v", field, got, want)
		}
	}
	pool := object(t, "IPPool", "p", "{cidr: 10.244.0.0/16}")
	if err := c.Create(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	defer remove(t, c, pool)
	if got, _, _ := unstructured.NestedString(pool.Object, "spec", "encapsulation"); got != "Auto" {
		t.Errorf("IPPool spec.encapsulation = %q, want Auto", got)
	}
}

// Every object in config/samples is accepted, and no field of it is unknown.
func testSamples(t *testing.T, c client.Client) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "heliograph-system"}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(Root(), "config", "samples", "*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("samples: %v, %v", files, err)
	}
	strict := client.WithFieldValidation(c, metav1.FieldValidationStrict)
	kinds := map[string]int{}
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		for _, u := range decodeAll(t, file) {
			kinds[u.GetKind()]++
			if err := strict.Create(t.Context(), u); err != nil {
				t.Errorf("%s: %s %s: %v", filepath.Base(file), u.GetKind(), u.GetName(), err)
				continue
			}
			remove(t, c, u)
		}
	}
	for _, kind := range []string{"IPPool", "BGPConfiguration", "BGPPeer", "FelixConfiguration", "NetworkPolicy", "GlobalNetworkPolicy", "Tier", "NetworkSet", "GlobalNetworkSet"} {
		if kinds[kind] == 0 {
			t.Errorf("no sample of kind %s", kind)
		}
	}
}

// Status is a part of its own: users write specs, the controller and agents write statuses.
func testStatus(t *testing.T, c client.Client) {
	u := object(t, "NodeStatus", "node1", "")
	u.Object["status"] = map[string]any{"sessionsEstablished": int64(1), "sessionsTotal": int64(1)}
	if err := c.Create(t.Context(), u.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	defer remove(t, c, u)
	patch := `{"status":{"sessionsEstablished":1,"sessionsTotal":2,"pathsNative":1,"pathsVXLAN":0,"pathsNone":0,
		"blocks":[{"name":"10-244-0-0-26","cidr":"10.244.0.0/26","pool":"p","inUse":3}],
		"sessions":[{"name":"peer/tor","peerIP":"192.0.2.1","asNumber":65101,"state":"Established","prefixesIn":1,"prefixesOut":2,"rejected":0,"flaps":0}],
		"paths":[{"node":"node2","family":"IPv4","method":"Native","reason":"x"},{"node":"node2","family":"IPv6","method":"VXLAN","reason":"x"}]}}`
	if err := c.Status().Patch(t.Context(), u, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Errorf("status of NodeStatus: %v", err)
	}
	twice := `{"status":{"sessionsTotal":2,"paths":[{"node":"node2","family":"IPv4","method":"Native","reason":"x"},{"node":"node2","family":"IPv4","method":"VXLAN","reason":"x"}]}}`
	if err := c.Status().Patch(t.Context(), u, client.RawPatch(types.MergePatchType, []byte(twice))); !refused(err, "Duplicate value") {
		t.Errorf("two paths to one node and family: %v", err)
	}
}

func decodeAll(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return decode(t, f)
}

func decode(t *testing.T, r io.Reader) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	d := yaml.NewYAMLOrJSONDecoder(r, 4096)
	for {
		u := &unstructured.Unstructured{}
		switch err := d.Decode(u); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatal(err)
		}
		if len(u.Object) > 0 {
			out = append(out, u)
		}
	}
}

func remove(t *testing.T, c client.Client, u *unstructured.Unstructured) {
	t.Helper()
	if err := c.Delete(context.WithoutCancel(t.Context()), u); err != nil {
		t.Errorf("delete %s %s: %v", u.GetKind(), u.GetName(), err)
	}
}
