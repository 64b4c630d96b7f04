// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// probeKeySize is the size of the key in bytes: as long as the output of the hash (RFC 2104 §3).
const probeKeySize = 32

// ProbeKeyReconciler makes the key by which agents know each other's probes. A Secret that is deleted is
// made anew, with another key. While agents disagree nothing answers, by any method, which changes no path.
type ProbeKeyReconciler struct {
	Client    client.Client
	Namespace string
	Log       *slog.Logger
}

// SetupWithManager starts the reconciler with the manager.
func (r *ProbeKeyReconciler) SetupWithManager(mgr manager.Manager) error {
	poke := pokeAfter(0)
	ours := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == v1alpha1.ProbeSecret })
	// Nodes are there before the Secret is: without one there is nobody to probe.
	none := predicate.Funcs{}
	none.UpdateFunc = changed(func(any) any { return nil }).Update
	err := builder.ControllerManagedBy(mgr).Named("probekey").WithOptions(retries()).
		Watches(&corev1.Secret{}, poke, builder.WithPredicates(ours)).
		Watches(&corev1.Node{}, poke, builder.WithPredicates(none)).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the probe key controller: %w", err)
	}
	return nil
}

// Reconcile makes the Secret, or its key, if it is missing.
func (r *ProbeKeyReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	name := types.NamespacedName{Namespace: r.Namespace, Name: v1alpha1.ProbeSecret}
	var secret corev1.Secret
	err := r.Client.Get(ctx, name, &secret)
	switch {
	case err == nil && len(secret.Data[v1alpha1.ProbeSecretKey]) > 0:
		return reconcile.Result{}, nil
	case err == nil:
		before := secret.DeepCopy()
		secret.Data = map[string][]byte{v1alpha1.ProbeSecretKey: newProbeKey()}
		err = r.Client.Patch(ctx, &secret, client.MergeFrom(before))
	case apierrors.IsNotFound(err):
		err = r.Client.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: name.Namespace, Name: name.Name, Labels: map[string]string{"app.kubernetes.io/name": "heliograph"},
			},
			Data: map[string][]byte{v1alpha1.ProbeSecretKey: newProbeKey()},
		})
	}
	if apierrors.IsAlreadyExists(err) {
		return reconcile.Result{}, nil // our cache is behind
	}
	if err != nil {
		return reconcile.Result{}, unlessStopping(ctx, fmt.Errorf("make Secret %s: %w", name, err))
	}
	r.Log.Info("made a key for probes", "secret", name)
	return reconcile.Result{}, nil
}

func newProbeKey() []byte {
	key := make([]byte, probeKeySize)
	_, _ = rand.Read(key) // never fails (crypto/rand, Go 1.24)
	return key
}
