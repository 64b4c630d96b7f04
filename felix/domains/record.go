// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heliograph-dev/heliograph/felix/feed"
)

// Records is the kind of Record. No API server has it: the agent itself tells its feed, which brings
// records to the compiler, and to the disk, together with all else that policy follows from.
const Records feed.Kind = "domainrecords"

// Record is what is known of the name that is its own.
type Record struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Leases []Lease `json:"leases"`
}

// Lease is an address until then.
type Lease struct {
	IP  netip.Addr `json:"ip"`
	End time.Time  `json:"end"`
}

// DeepCopyObject implements runtime.Object.
func (r *Record) DeepCopyObject() runtime.Object {
	out := *r
	r.DeepCopyInto(&out.ObjectMeta)
	out.Leases = slices.Clone(r.Leases)
	return &out
}

// Addresses are those of all leases.
func (r *Record) Addresses() []netip.Addr {
	addrs := make([]netip.Addr, 0, len(r.Leases))
	for _, l := range r.Leases {
		addrs = append(addrs, l.IP)
	}
	return addrs
}

// Key names the record of a name.
func Key(name string) feed.Key { return feed.Key{Kind: Records, Name: name} }
