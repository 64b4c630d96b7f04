// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

const (
	// optionalRetry is when an API server that does not answer is asked again.
	optionalRetry = time.Second
	// defaultInstallCheck is how often one that lacks a kind is asked whether somebody has installed it.
	defaultInstallCheck = time.Minute
)

// watchOptional watches ClusterNetworkPolicies once the API server has the kind. A watch of what is not
// there would never be in sync.
func (w *Watcher) watchOptional(ctx context.Context) {
	decided := false
	for ctx.Err() == nil {
		served, err := w.serves(policyv1alpha2.GroupVersion.String(), "clusternetworkpolicies")
		wait := w.opts.InstallCheck
		switch {
		case err != nil:
			wait = optionalRetry
		case served:
			w.begin(ctx, decided)
			return
		case !decided:
			decided = true
			close(w.decided)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
	}
}

// begin watches them. If that was decided before the first sync, the sync waits for them.
func (w *Watcher) begin(ctx context.Context, late bool) {
	heard, err := w.watchKind(ctx, ClusterNetworkPolicies, FeedTypes()[ClusterNetworkPolicies]())
	if err != nil {
		w.opts.Log.Error("ClusterNetworkPolicies are not obeyed", "error", err)
		heard = nil
	}
	if late {
		w.opts.Log.Info("the API server has ClusterNetworkPolicies now")
		return
	}
	if heard != nil {
		w.heard = append(w.heard, toolscache.InformerSynced(heard))
	}
	close(w.decided)
}

// serves says whether the API server has a kind.
func (w *Watcher) serves(groupVersion, resource string) (bool, error) {
	list, err := w.api.ServerResourcesForGroupVersion(groupVersion)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }), nil
}
