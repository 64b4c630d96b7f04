// SPDX-License-Identifier: Apache-2.0

//go:build linux

package controllers

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/internal/apitest"
)

// kept waits until the API server refuses to delete a tier, and says why.
func (s *suite) kept(t *testing.T, tier *v1alpha1.Tier) (why string) {
	t.Helper()
	eventually(t, func() error {
		err := s.admin.Delete(t.Context(), tier, client.DryRunAll)
		if err == nil {
			return errors.New("the tier may be deleted")
		}
		why = err.Error()
		return nil
	})
	return why
}

// TestTierInUse: a tier cannot be deleted while policies name it, and can once none does.
func TestTierInUse(t *testing.T) {
	s := newSuite(t)
	apitest.CreateRBAC(t, s.admin, "tier_admission.yaml")
	s.run(t)
	tier := &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: "guarded"}}
	p := newPolicy("p", v1alpha1.PolicySpec{Tier: "guarded"})
	s.create(t, tier, p)
	if why := s.kept(t, tier); !strings.Contains(why, "tier guarded has 1 policies") {
		t.Errorf("refused: %s", why)
	}
	s.delete(t, p)
	eventually(t, func() error { return s.admin.Delete(t.Context(), tier) })
}

// TestTierInUseIsUninstalled: that a tier is in use does not keep its CRD from being deleted, when nobody is left
// to say that it no longer is.
func TestTierInUseIsUninstalled(t *testing.T) {
	s := newSuite(t)
	apitest.CreateRBAC(t, s.admin, "tier_admission.yaml")
	tier := &v1alpha1.Tier{ObjectMeta: metav1.ObjectMeta{Name: "guarded"}}
	s.create(t, tier)
	tier.Status.Policies = 3
	if err := s.admin.Status().Update(t.Context(), tier); err != nil {
		t.Fatal(err)
	}
	s.kept(t, tier)
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	crd.SetName("tiers.heliograph.dev")
	s.delete(t, crd)
	eventually(t, func() error {
		err := s.admin.Get(t.Context(), client.ObjectKeyFromObject(crd), crd)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the CRD is still there: %w", err)
	})
}
