package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// get reads an object from the API server, through the forwarder.
func (l *Lab) get(ctx context.Context, path string, out any) error {
	ca, err := readFile(pkiPath("ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	// No proxy: the server is on this machine, whatever the environment says.
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.outsideURL()+path, nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	req.Header.Set("Authorization", "Bearer "+l.state.Token)
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the API server: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", path, resp.Status)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

func (l *Lab) apiReady(ctx context.Context) error { return l.get(ctx, "/readyz", nil) }

// condition, node, pod and workload are the parts of the API's kinds that the
// lab looks at.
type condition struct {
	Type, Status, Reason, Message string
}

type metadata struct {
	Name, Namespace string
}

type nodeList struct {
	Items []node
}

type node struct {
	Metadata metadata
	Status   struct {
		Conditions []condition
	}
}

func (n node) ready() bool { return isTrue(n.Status.Conditions, "Ready") }

func isTrue(cs []condition, kind string) bool {
	for _, c := range cs {
		if c.Type == kind {
			return c.Status == "True"
		}
	}
	return false
}

type podList struct {
	Items []pod
}

type pod struct {
	Metadata metadata
	Spec     struct {
		NodeName string
	}
	Status struct {
		Phase             string
		Conditions        []condition
		PodIPs            []struct{ IP string }
		ContainerStatuses []struct {
			ContainerID string
			State       struct {
				Waiting struct{ Reason, Message string }
			}
		}
	}
}

func (p pod) ready() bool { return isTrue(p.Status.Conditions, "Ready") }

// nodes returns the cluster's nodes by name.
func (l *Lab) nodes(ctx context.Context) (map[string]node, error) {
	var list nodeList
	if err := l.get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	out := map[string]node{}
	for _, n := range list.Items {
		out[n.Metadata.Name] = n
	}
	return out, nil
}

// KubectlCommand is kubectl as the lab's administrator.
func (l *Lab) KubectlCommand(args ...string) (path string, argv, env []string) {
	path = l.Cache.Binary("kubectl")
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		if name != "KUBECONFIG" && !strings.HasSuffix(name, "_PROXY") {
			env = append(env, kv)
		}
	}
	env = append(env, "KUBECONFIG="+Kubeconfig, "KUBECACHEDIR="+statePath("kubectl-cache"))
	return path, append([]string{"kubectl"}, args...), env
}

// kubectl runs kubectl to its end.
func (l *Lab) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	path, argv, env := l.KubectlCommand(args...)
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Env = env
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
