// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"errors"
	"fmt"

	"github.com/heliograph-dev/heliograph/felix/enforce"
	"github.com/heliograph-dev/heliograph/felix/iptables"
	"github.com/heliograph-dev/heliograph/felix/nftpolicy"
)

// dataplanes are those that policy can be enforced by, the best first. Of iptables' two variants the host
// uses one, which is ours too; the other is among them so that what we left there, before the host
// changed, is swept.
func (p *policyPart) dataplanes() []enforce.Dataplane {
	return []enforce.Dataplane{
		{Name: enforce.NFTables, Open: func() (enforce.Renderer, error) { return nftpolicy.New(p.kernel, p.log), nil }},
		{Name: enforce.IPTables, Polled: true, Open: func() (enforce.Renderer, error) {
			v, err := p.hostVariant()
			if err != nil {
				return nil, err
			}
			return p.openIPTables(v)
		}},
		{Name: enforce.IPTables + " (the variant that the host does not use)", Open: func() (enforce.Renderer, error) {
			v, err := p.hostVariant()
			if err != nil {
				return nil, err
			}
			other := iptables.NFT
			if v == iptables.NFT {
				other = iptables.Legacy
			}
			t, err := p.openIPTables(other)
			if err != nil {
				return nil, err
			}
			return otherVariant{t}, nil
		}},
	}
}

// otherVariant deletes its rules only: the sets are those of the variant that is in use, too.
type otherVariant struct{ *iptables.Table }

// Delete implements enforce.Renderer.
func (t otherVariant) Delete(ctx context.Context) error { return t.DeleteRules(ctx) }

// hostVariant is which iptables the host uses. It is found out once: our own rules must not decide.
func (p *policyPart) hostVariant() (iptables.Variant, error) {
	if p.variant == iptables.Auto {
		k, err := p.openKernel(iptables.Auto)
		if err != nil {
			return p.variant, err
		}
		p.variant = k.Variant()
		p.iptables[p.variant] = k
	}
	return p.variant, nil
}

// openKernel tells a node without iptables, or without this variant of it, from one on which it fails.
func (p *policyPart) openKernel(v iptables.Variant) (*iptables.Kernel, error) {
	k, err := iptables.Open(v, p.restores)
	if errors.Is(err, iptables.ErrNoIPTables) {
		return nil, fmt.Errorf("%w: %w", enforce.ErrMissing, err)
	}
	return k, err
}

func (p *policyPart) openIPTables(v iptables.Variant) (*iptables.Table, error) {
	if p.iptables[v] == nil {
		k, err := p.openKernel(v)
		if err != nil {
			return nil, fmt.Errorf("open iptables (%s): %w", v, err)
		}
		p.iptables[v] = k
	}
	return iptables.New(p.iptables[v], p.log), nil
}
