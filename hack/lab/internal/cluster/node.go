package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/cache"
	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// nodePrivate are the places where Kubernetes and its networks keep things on a
// node. Those of other networks are there for --cni=none.
var nodePrivate = []string{
	"/run", "/etc/cni", "/opt/cni",
	"/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni",
	"/var/lib/heliograph", "/var/lib/calico", "/var/lib/kube-router",
	"/var/log/pods", "/var/log/containers",
}

// nodeTunables are the whole machine's, and kubelet sets them: it gets copies.
var nodeTunables = []string{
	"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom",
	"/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
	"/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes",
}

// nodePrivatePaths returns what a node has for itself; a kernel may lack a tunable.
func nodePrivatePaths() []string {
	out := slices.Clone(nodePrivate)
	for _, t := range nodeTunables {
		if _, err := os.Stat(t); err == nil {
			out = append(out, t)
		}
	}
	return out
}

var (
	//go:embed containerd.toml.tmpl
	containerdTemplate string
	//go:embed kubelet.yaml.tmpl
	kubeletTemplate string

	containerdConfig = template.Must(template.New("containerd.toml").Parse(containerdTemplate))
	kubeletConfig    = template.Must(template.New("kubelet.yaml").Parse(kubeletTemplate))
)

type nodeConfig struct {
	Name       string
	PauseImage string
	// Snapshotter is overlayfs where the kernel has it: with native each
	// container's root is a copy.
	Snapshotter string
	CgroupRoot  string
	DNS         string
}

func renderNode(h topology.Host, snapshotter string) (containerd, kubelet []byte, err error) {
	c := nodeConfig{
		Name: h.Name, PauseImage: cache.PauseImage, Snapshotter: snapshotter,
		CgroupRoot: "/" + cgroupName + "/" + h.Name, DNS: topology.DNSServiceIP,
	}
	var a, b bytes.Buffer
	if err := containerdConfig.Execute(&a, c); err != nil {
		return nil, nil, fmt.Errorf("render containerd's configuration of %s: %w", h.Name, err)
	}
	if err := kubeletConfig.Execute(&b, c); err != nil {
		return nil, nil, fmt.Errorf("render kubelet's configuration of %s: %w", h.Name, err)
	}
	return a.Bytes(), b.Bytes(), nil
}

func snapshotter() string {
	b, err := os.ReadFile("/proc/filesystems")
	if err == nil && strings.Contains(string(b), "\toverlay\n") {
		return "overlayfs"
	}
	return "native"
}

// startRuntime runs a node's containerd and gives it the images.
func (l *Lab) startRuntime(ctx context.Context, h topology.Host) error {
	hh := hostOf(h)
	containerd, kubelet, err := renderNode(h, snapshotter())
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(hh.Dir, "containerd.toml"), containerd, 0o644); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(hh.Dir, "kubelet.yaml"), kubelet, 0o644); err != nil {
		return err
	}
	if err := installLoopback(hh.Dir); err != nil {
		return err
	}
	err = l.ensure(ctx, service{
		host: hh, name: "containerd",
		argv:  []string{"/usr/bin/containerd", "--config", filepath.Join(hh.Dir, "containerd.toml")},
		ready: listens(filepath.Join(hh.Dir, "root/run/containerd/containerd.sock")),
	})
	if err != nil {
		return err
	}
	for _, tar := range l.Cache.Images() {
		if err := l.importImage(ctx, h, tar); err != nil {
			return err
		}
	}
	return nil
}

// loopback is Debian's; containerd needs it under this name beside whatever network there is, as
// nodes get it with the package kubernetes-cni.
const loopback = "/usr/lib/cni/loopback"

// installLoopback puts the loopback plugin into a node's own /opt/cni/bin.
func installLoopback(dir string) error {
	content, err := os.ReadFile(loopback)
	if err != nil {
		return fmt.Errorf("read the loopback plugin (package containernetworking-plugins): %w", err)
	}
	bin := filepath.Join(dir, "root/opt/cni/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", bin, err)
	}
	return writeFile(filepath.Join(bin, "loopback"), content, 0o755)
}

// startKubelet runs what makes the host a node of the cluster.
func (l *Lab) startKubelet(ctx context.Context, h topology.Host) error {
	hh := hostOf(h)
	if err := makeCgroup(h.Name); err != nil {
		return err
	}
	var ips []string
	for _, a := range h.Addrs() {
		ips = append(ips, a.String())
	}
	return l.ensureAll(ctx, []service{
		{host: hh, name: "kubelet", argv: []string{
			l.Cache.Binary("kubelet"), "--config=" + filepath.Join(hh.Dir, "kubelet.yaml"),
			"--kubeconfig=" + kubeconfigOf("system:node:"+h.Name),
			"--hostname-override=" + h.Name, "--node-ip=" + strings.Join(ips, ","),
			"--node-labels=heliograph.dev/rack=" + h.RackName() + ",topology.kubernetes.io/zone=" + h.RackName(),
		}},
		{host: hh, name: "kube-proxy", argv: []string{
			l.Cache.Binary("kube-proxy"), "--kubeconfig=" + kubeconfigOf(proxyUser),
			"--hostname-override=" + h.Name, "--proxy-mode=nftables", "--cluster-cidr=" + topology.PodCIDRs,
			// The size of the conntrack table belongs to the machine.
			"--conntrack-max-per-core=0",
		}},
	})
}

// importImage loads an archive into a node's containerd, unless this very file
// is there already.
func (l *Lab) importImage(ctx context.Context, h topology.Host, tar string) error {
	key, err := fileKey(tar)
	if err != nil {
		return err
	}
	mark := filepath.Join(hostOf(h).Dir, "images", key)
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	if _, err := hostOf(h).Run(ctx, "", "ctr", "-n", "k8s.io", "images", "import", tar); err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	return writeFile(mark, nil, 0o644)
}

// fileKey changes whenever a file's content may have.
func fileKey(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("look at image: %w", err)
	}
	return fmt.Sprintf("%s-%d-%d", filepath.Base(path), st.Size(), st.ModTime().UnixNano()), nil
}
