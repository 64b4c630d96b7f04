// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/spf13/cobra"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy/explain"
)

func newPolicyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Look at network policy: what it does with a packet, what a change would change, where it is in force"}
	cmd.AddCommand(newPolicyExplainCommand(), newPolicyImpactCommand(), newPolicyStatusCommand())
	return cmd
}

// page is how many objects one request lists.
const page = 500

// readPolicyCluster lists all that policy follows from, with the caller's rights. Notes say what an answer lacks.
func readPolicyCluster(ctx context.Context, c client.Client) (out *explain.Cluster, notes []string, err error) {
	out = explain.NewCluster()
	for _, k := range explain.Kinds() {
		err := readKind(ctx, c, k, out)
		switch {
		case err == nil:
		case k.Dispensable && apierrors.IsForbidden(err):
			notes = append(notes, fmt.Sprintf("without the right to list %s, policies that refer to them are not seen as nodes see them", k.Resource))
		default:
			return nil, nil, err
		}
	}
	return out, notes, nil
}

func readKind(ctx context.Context, c client.Client, k explain.Kind, to *explain.Cluster) error {
	for next := ""; ; {
		list := k.List()
		err := c.List(ctx, list, client.Limit(page), client.Continue(next))
		switch {
		case k.Optional && apimeta.IsNoMatchError(err):
			return nil
		case apierrors.IsForbidden(err):
			return fmt.Errorf("policy follows from %s, so the right to list them is needed in all namespaces: %w", k.Resource, err)
		case err != nil:
			return fmt.Errorf("list %s: %w", k.Resource, err)
		}
		if err := to.PutList(k, list); err != nil {
			return err
		}
		if next = list.GetContinue(); next == "" {
			return nil
		}
	}
}

// readNodeAddresses learns with which addresses nodes talk to pods of other nodes.
func readNodeAddresses(ctx context.Context, c client.Client, to *explain.Cluster) error {
	var statuses v1alpha1.NodeStatusList
	if err := c.List(ctx, &statuses); err != nil {
		return fmt.Errorf("list NodeStatuses: %w", err)
	}
	for _, s := range statuses.Items {
		var ips []netip.Addr
		for _, text := range s.Status.PodNetworkIPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				ips = append(ips, ip.Unmap())
			}
		}
		to.SetNode(s.Name, ips)
	}
	return nil
}

// changeFlags say what a dry run changes.
type changeFlags struct {
	files, without []string
	namespace      string // of objects that name none
}

// dryRun is what a dry run changes, for those who read its answer.
type dryRun struct {
	Put     []string `json:"put"`
	Deleted []string `json:"deleted"`
}

// read reads the files and names of a change; nil if there are none.
func (f changeFlags) read(stdin io.Reader) (explain.Change, *dryRun, error) {
	var change explain.Change
	said := dryRun{Put: []string{}, Deleted: []string{}}
	for _, file := range f.files {
		objects, err := decodeFile(file, f.namespace, stdin)
		if err != nil {
			return change, nil, err
		}
		if len(objects) == 0 {
			return change, nil, fmt.Errorf("%s: there is no object in it", file)
		}
		change.Put = append(change.Put, objects...)
	}
	for _, text := range f.without {
		ref, err := explain.ParseRef(text)
		if err != nil {
			return change, nil, fmt.Errorf("--without: %w", err)
		}
		change.Delete = append(change.Delete, ref)
		said.Deleted = append(said.Deleted, ref.String())
	}
	for _, t := range change.Put {
		said.Put = append(said.Put, t.Ref().String())
	}
	if len(change.Put)+len(change.Delete) == 0 {
		return change, nil, nil
	}
	return change, &said, nil
}

func decodeFile(file, namespace string, stdin io.Reader) ([]explain.Typed, error) {
	if file == "-" {
		objects, err := explain.Decode(stdin, namespace)
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return objects, nil
	}
	f, err := os.Open(file) //nolint:gosec // the user names it
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	objects, err := explain.Decode(f, namespace)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return objects, nil
}

// namespaceOf is that of the kubeconfig's context, as kubectl takes it for objects that name none.
func namespaceOf(kubeconfig string) string {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	namespace, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).Namespace()
	if err != nil {
		return "default" // what is wrong with the kubeconfig is said where it is needed
	}
	return cmp.Or(namespace, "default")
}
