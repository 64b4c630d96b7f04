// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func newBGPCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bgp", Short: "Look at BGP: the sessions of all speakers and reflectors, and their routes"}
	cmd.AddCommand(newBGPSummaryCommand(), newBGPRoutesCommand())
	return cmd
}

// bgpState is what the bgp commands know of the cluster.
type bgpState struct {
	clusterState
	config *v1alpha1.BGPConfiguration // nil: there is none, and its defaults are in force
}

func readBGP(ctx context.Context, c client.Client) (bgpState, error) {
	cluster, err := readCluster(ctx, c)
	if err != nil {
		return bgpState{}, err
	}
	s := bgpState{clusterState: cluster}
	var configs v1alpha1.BGPConfigurationList
	if err := c.List(ctx, &configs); err != nil {
		return bgpState{}, fmt.Errorf("list BGPConfigurations: %w", err)
	}
	for i := range configs.Items {
		if configs.Items[i].Name == "default" {
			s.config = &configs.Items[i]
		}
	}
	return s, nil
}

// chosen are the reflectors that the controller chose.
func (s bgpState) chosen() []v1alpha1.Reflector {
	if s.config == nil || s.config.Status.RouteReflection == nil {
		return nil
	}
	return s.config.Status.RouteReflection.Reflectors
}

// silent notes that a node has not reported.
func silent(node string) string { return node + " has not reported: is the agent running there?" }

func encodeJSON(w io.Writer, what any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(what)
}
