// SPDX-License-Identifier: Apache-2.0

package agenttest

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// Where each node finds its API server, in its own namespace.
const (
	apiAddress = "127.0.0.1:6443"
	api        = "http://" + apiAddress
)

// notebook is an API server that lists nothing, so that the agent works from its copy on disk, and that takes
// the NodeStatus that the agent writes.
type notebook struct {
	mu     sync.Mutex
	status v1alpha1.NodeStatus
}

func startNotebook(t *testing.T, node string) *notebook {
	t.Helper()
	n := &notebook{status: v1alpha1.NodeStatus{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeStatus"},
		ObjectMeta: metav1.ObjectMeta{Name: node, ResourceVersion: "1"},
	}}
	var l net.Listener
	if err := within(node, func() (err error) { l, err = net.Listen("tcp", apiAddress); return err }); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("API server of %s: %v", node, err)
		}
	}()
	t.Cleanup(func() { _ = server.Close() })
	return n
}

// ServeHTTP implements http.Handler.
func (n *notebook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/nodestatuses/") {
		http.Error(w, "not here", http.StatusServiceUnavailable)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.Method == http.MethodPut {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(body, &n.status)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&n.status) // who does not hear it asks again
}

// path is what the agent wrote of the way to a node.
func (n *notebook) path(node, family string) (v1alpha1.PathStatus, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.status.Status.Paths, func(p v1alpha1.PathStatus) bool { return p.Node == node && p.Family == family })
	if i < 0 {
		return v1alpha1.PathStatus{}, false
	}
	return n.status.Status.Paths[i], true
}

// capability is what the agent wrote of its kernel.
func (n *notebook) capability(name string) v1alpha1.Capability {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.status.Status.Capabilities, func(c v1alpha1.Capability) bool { return c.Name == name })
	if i < 0 {
		return v1alpha1.Capability{}
	}
	return n.status.Status.Capabilities[i]
}

// problems are those that the agent wrote, as one text.
func (n *notebook) problems() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.status.Status.Problems, "\n")
}
