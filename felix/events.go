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
	"k8s.io/client-go/util/flowcontrol"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// Up to eventBurst changes of paths at a time get an Event of their own, and then one each
// 1/eventRate; the rest is summed up, so that the death of a router is not a thousand Events.
const (
	eventBurst = 5
	eventRate  = 0.1 // per second
)

// events tells of changes of paths as Kubernetes Events on the Node.
type events struct {
	broadcaster clientevents.EventBroadcaster
	recorder    clientevents.EventRecorder
	node        *corev1.ObjectReference
	limit       flowcontrol.PassiveRateLimiter
}

func newEvents(cfg *rest.Config, scheme *runtime.Scheme, node string) (*events, error) {
	clientset, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client for events: %w", err)
	}
	b := clientevents.NewBroadcaster(&clientevents.EventSinkImpl{Interface: clientset.EventsV1()})
	return &events{
		broadcaster: b, recorder: b.NewRecorder(scheme, "heliograph-agent"), node: nodeReference(node),
		limit: flowcontrol.NewTokenBucketPassiveRateLimiter(eventRate, eventBurst),
	}, nil
}

// nodeReference has the name as the UID, as kubelet does it, so that kubectl describe node finds the
// Events.
func nodeReference(name string) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}
}

// start begins to record, until ctx ends. What is recorded before is lost.
func (e *events) start(ctx context.Context) error {
	if err := e.broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("record events: %w", err)
	}
	return nil
}

// run ends the recording with ctx.
func (e *events) run(ctx context.Context) error {
	<-ctx.Done()
	e.broadcaster.Shutdown()
	return nil
}

// quorumChanged records that the network of this node became good or bad.
func (e *events) quorumChanged(q Quorum) {
	if q.Proven() {
		e.recorder.Eventf(e.node, nil, corev1.EventTypeNormal, "PathsProven", "Probe", "%d of %d other nodes answer", q.Answering, q.Others)
		return
	}
	e.recorder.Eventf(e.node, nil, corev1.EventTypeWarning, "PathsLost", "Probe",
		"%d of %d other nodes answer; see the paths of NodeStatus %s", q.Answering, q.Others, e.node.Name)
}

// unanswered records that a node answers by no method any more.
func (e *events) unanswered(p PathReport) {
	if e.limit.TryAccept() {
		e.recorder.Eventf(e.node, nodeReference(p.Node), corev1.EventTypeWarning, "PathUnanswered", "Probe"+p.Family.String(),
			"%s to %s: nothing answers by any method; %s is kept as a guess", p.Family, p.Node, p.Method)
	}
}

// pathsChanged records changes of method. The remote node and the family are part of what makes an
// Event another one: those that differ in the note alone are counted as one.
func (e *events) pathsChanged(changed []PathReport) {
	rest := 0
	for _, p := range changed {
		if !e.limit.TryAccept() {
			rest++
			continue
		}
		kind := corev1.EventTypeNormal
		if p.Method != v1alpha1.PathNative {
			kind = corev1.EventTypeWarning
		}
		e.recorder.Eventf(e.node, nodeReference(p.Node), kind, "Path"+string(p.Method), "Route"+p.Family.String(),
			"%s to %s is now %s: %s", p.Family, p.Node, p.Method, p.Reason)
	}
	if rest > 0 {
		e.recorder.Eventf(e.node, nil, corev1.EventTypeWarning, "PathsChanged", "Route",
			"%d more paths changed; see NodeStatus %s", rest, e.node.Name)
	}
}
