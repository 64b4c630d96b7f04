package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

// account is an identity that the API server knows by a token.
type account struct {
	name, group string
}

const (
	adminUser      = "admin"
	controllerUser = "system:kube-controller-manager"
	schedulerUser  = "system:kube-scheduler"
	proxyUser      = "system:kube-proxy"
)

func pkiPath(name string) string { return statePath("pki", name) }

// writePKI makes the cluster's keys, tokens and kubeconfigs.
func (l *Lab) writePKI() error {
	control, _ := l.plan.Host("control")
	if err := writeCerts(control); err != nil {
		return err
	}
	users := []account{
		{adminUser, "system:masters"}, {controllerUser, ""}, {schedulerUser, ""}, {proxyUser, ""},
	}
	for _, n := range l.plan.Of(topology.Node) {
		users = append(users, account{"system:node:" + n.Name, "system:nodes"})
	}
	inside := apiURL(control)
	var tokens strings.Builder
	for _, u := range users {
		token := randomToken()
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", token, u.name, u.name, u.group)
		if err := writeKubeconfig(kubeconfigOf(u.name), inside, token); err != nil {
			return err
		}
		if u.name == adminUser {
			l.state.Token = token
		}
	}
	if err := writeFile(pkiPath("tokens.csv"), []byte(tokens.String()), 0o600); err != nil {
		return err
	}
	return writeKubeconfig(Kubeconfig, l.outsideURL(), l.state.Token)
}

// Kubeconfig is the administrator's, for use from outside the lab.
const Kubeconfig = StateDir + "/kubeconfig"

// InsideKubeconfig is the administrator's, for use on the lab's hosts.
const InsideKubeconfig = StateDir + "/pki/" + adminUser + ".kubeconfig"

func kubeconfigOf(user string) string {
	return pkiPath(strings.ReplaceAll(user, ":", "-") + ".kubeconfig")
}

func apiURL(control topology.Host) string {
	return fmt.Sprintf("https://%s:6443", control.Addrs()[0])
}

func (l *Lab) outsideURL() string { return fmt.Sprintf("https://127.0.0.1:%d", l.state.APIPort) }

func writeKubeconfig(path, server, token string) error {
	ca, err := readFile(pkiPath("ca.crt"))
	if err != nil {
		return err
	}
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: lab
  user: {token: %s}
contexts:
- name: lab
  context: {cluster: lab, user: lab}
current-context: lab
`, server, base64.StdEncoding.EncodeToString(ca), token)
	return writeFile(path, []byte(content), 0o600)
}

func writeCerts(control topology.Host) error {
	caKey, err := newKey("ca.key")
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "heliograph-lab"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	if err := writeCert("ca.crt", ca, ca, &caKey.PublicKey, caKey); err != nil {
		return err
	}
	key, err := newKey("apiserver.key")
	if err != nil {
		return err
	}
	serving := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(topology.APIServiceIP)},
	}
	for _, a := range control.Addrs() {
		serving.IPAddresses = append(serving.IPAddresses, a.AsSlice())
	}
	if err := writeCert("apiserver.crt", serving, ca, &key.PublicKey, caKey); err != nil {
		return err
	}
	_, err = newKey("sa.key")
	return err
}

func newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", name, err)
	}
	return key, writeFile(pkiPath(name), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func writeCert(name string, cert, parent *x509.Certificate, pub *ecdsa.PublicKey, signer *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, pub, signer)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", name, err)
	}
	return writeFile(pkiPath(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}
