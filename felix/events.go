// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clientevents "k8s.io/client-go/tools/events"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// eventBurst is how many changes of one run get an Event of their own; the rest is summed up, so
// that the death of a router is not a thousand Events.
const eventBurst = 5

// events tells of changes of paths as Kubernetes Events on the Node.
type events struct {
	broadcaster clientevents.EventBroadcaster
	recorder    clientevents.EventRecorder
	node        *corev1.ObjectReference
}

func newEvents(cfg *rest.Config, scheme *runtime.Scheme, node string) (*events, error) {
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client for events: %w", err)
	}
	b := clientevents.NewBroadcaster(&clientevents.EventSinkImpl{Interface: clientset.EventsV1()})
	return &events{
		broadcaster: b, recorder: b.NewRecorder(scheme, "heliograph-agent"),
		// The name serves as the UID, as kubelet does it, so that kubectl describe node finds the Events.
		node: &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
	}, nil
}

func (e *events) run(ctx context.Context) error {
	if err := e.broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("record events: %w", err)
	}
	<-ctx.Done()
	e.broadcaster.Shutdown()
	return nil
}

// pathsChanged records changes of method.
func (e *events) pathsChanged(changed []PathReport) {
	for i, p := range changed {
		if i == eventBurst && len(changed) > eventBurst+1 {
			e.recorder.Eventf(e.node, nil, corev1.EventTypeWarning, "PathsChanged", "Route",
				"%d more paths changed; see NodeStatus %s", len(changed)-i, e.node.Name)
			return
		}
		kind := corev1.EventTypeNormal
		if p.Method != v1alpha1.PathNative {
			kind = corev1.EventTypeWarning
		}
		e.recorder.Eventf(e.node, nil, kind, "Path"+string(p.Method), "Route",
			"%s to %s is now %s: %s", p.Family, p.Node, p.Method, p.Reason)
	}
}
