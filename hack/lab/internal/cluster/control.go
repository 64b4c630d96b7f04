package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

var controlPrivate = []string{"/run"}

// ForwarderArg as the first argument makes the lab's binary the forwarder.
const ForwarderArg = "__forward"

// preferredPort is where kubectl finds the API server, unless it is taken.
const preferredPort = 16443

// startControlPlane runs etcd and the API server, and the forwarder to it.
func (l *Lab) startControlPlane(ctx context.Context) error {
	control, _ := l.plan.Host("control")
	hh := hostOf(control)
	etcd := service{host: hh, name: "etcd", argv: []string{
		l.Cache.Binary("etcd"), "--data-dir=" + filepath.Join(hh.Dir, "etcd"),
		// The lab's data need not outlive a crash of the machine.
		"--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn",
	}}
	api := service{host: hh, name: "kube-apiserver", argv: l.apiserverArgs(control), ready: l.apiReady}
	if err := l.ensure(ctx, etcd); err != nil {
		return err
	}
	if err := l.ensureForwarder(ctx); err != nil {
		return err
	}
	return l.ensure(ctx, api)
}

func (l *Lab) apiserverArgs(control topology.Host) []string {
	return []string{
		l.Cache.Binary("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port=6443",
		"--advertise-address=" + control.Addrs()[0].String(),
		"--tls-cert-file=" + pkiPath("apiserver.crt"), "--tls-private-key-file=" + pkiPath("apiserver.key"),
		"--token-auth-file=" + pkiPath("tokens.csv"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + topology.ServiceCIDRs,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pkiPath("sa.key"),
		"--service-account-signing-key-file=" + pkiPath("sa.key"),
		"--allow-privileged=true",
		// There is no DNS for node names.
		"--kubelet-preferred-address-types=InternalIP",
	}
}

// startControllers runs what needs the API server.
func (l *Lab) startControllers(ctx context.Context) error {
	control, _ := l.plan.Host("control")
	hh := hostOf(control)
	return l.ensureAll(ctx, []service{
		{host: hh, name: "kube-controller-manager", argv: []string{
			l.Cache.Binary("kube-controller-manager"), "--kubeconfig=" + kubeconfigOf(controllerUser),
			"--use-service-account-credentials=true", "--leader-elect=false", "--secure-port=0",
			"--service-account-private-key-file=" + pkiPath("sa.key"), "--root-ca-file=" + pkiPath("ca.crt"),
			"--allocate-node-cidrs=false", "--service-cluster-ip-range=" + topology.ServiceCIDRs,
			// By default this is made on the machine.
			"--flex-volume-plugin-dir=" + filepath.Join(hh.Dir, "flexvolume"),
		}},
		{host: hh, name: "kube-scheduler", argv: []string{
			l.Cache.Binary("kube-scheduler"), "--kubeconfig=" + kubeconfigOf(schedulerUser),
			"--leader-elect=false", "--secure-port=0",
		}},
	})
}

// ensureForwarder starts the forwarder. It accepts on a socket that was opened
// here, on the machine's loopback, and dials in the control host where it runs.
func (l *Lab) ensureForwarder(ctx context.Context) error {
	control, _ := l.plan.Host("control")
	hh := hostOf(control)
	if hh.Service("forwarder").Alive() {
		return nil
	}
	ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", l.state.APIPort))
	if err != nil {
		return fmt.Errorf("listen for the forwarder: %w", err)
	}
	defer func() { _ = ln.Close() }()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		return fmt.Errorf("pass on the forwarder's socket: %w", err)
	}
	defer f.Close()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the forwarder's binary: %w", err)
	}
	return l.ensure(ctx, service{
		host: hh, name: "forwarder", files: []*os.File{f},
		argv: []string{exe, ForwarderArg, "127.0.0.1:6443"},
	})
}

// pickPort returns a free port for the forwarder.
func pickPort() (int, error) {
	for _, want := range []int{preferredPort, 0} {
		ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", want))
		if err != nil {
			continue
		}
		defer func() { _ = ln.Close() }()
		return ln.Addr().(*net.TCPAddr).Port, nil
	}
	return 0, fmt.Errorf("find a free port on 127.0.0.1")
}
