// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apitest

import (
	"testing"

	"k8s.io/client-go/discovery"
)

func TestStart(t *testing.T) {
	cfg := Start(t)
	c, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	t.Log("API server", v.GitVersion)
	list, err := c.ServerResourcesForGroupVersion("heliograph.dev/v1alpha1")
	if err != nil || len(list.APIResources) < 6 {
		t.Fatalf("resources of heliograph.dev: %v, %v", list, err)
	}
}
