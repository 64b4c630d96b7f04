// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// minLife is how long an address is kept at least: programs go on connecting to where a name was
	// when they asked, and many names live for seconds.
	minLife = 2 * time.Minute
	// maxLife bounds what a resolver may say.
	maxLife = 24 * time.Hour
	// maxNames and maxAddresses, of a name, bound the memory. What ends first goes first.
	maxNames     = 10_000
	maxAddresses = 1_000
)

// Book is what is known of the names that somebody wants. It is not safe for concurrent use.
type Book struct {
	exact map[string]bool // names that are wanted
	below map[string]bool // domains below which all are
	names map[string]map[netip.Addr]time.Time
}

// NewBook returns a book in which nothing stands, and that wants nothing.
func NewBook() *Book { return &Book{names: map[string]map[netip.Addr]time.Time{}} }

// Want sets the names that are kept, "*." and a domain being all below that, and returns those that are
// forgotten.
func (b *Book) Want(patterns []string) (forgotten []string) {
	b.exact, b.below = map[string]bool{}, map[string]bool{}
	for _, p := range patterns {
		if parent, ok := strings.CutPrefix(p, "*."); ok {
			b.below[parent] = true
		} else {
			b.exact[p] = true
		}
	}
	for name := range b.names {
		if !b.wants(name) {
			delete(b.names, name)
			forgotten = append(forgotten, name)
		}
	}
	return forgotten
}

// WantsAny says whether one of the names is kept.
func (b *Book) WantsAny(names []string) bool { return slices.ContainsFunc(names, b.wants) }

func (b *Book) wants(name string) bool {
	if b.exact[name] {
		return true
	}
	for rest, found := name, true; found; {
		if _, rest, found = strings.Cut(rest, "."); found && b.below[rest] {
			return true
		}
	}
	return false
}

// Learn notes an answer, and returns the names of which an address is new, and those that had to give way.
func (b *Book) Learn(a Answer, now time.Time) (changed []string) {
	for _, name := range a.Names {
		if len(a.Addrs) == 0 || !b.wants(name) {
			continue
		}
		if b.names[name] == nil {
			if len(b.names) >= maxNames {
				changed = append(changed, b.dropFirst())
			}
			b.names[name] = map[netip.Addr]time.Time{}
		}
		if learn(b.names[name], a.Addrs, now) {
			changed = append(changed, name)
		}
	}
	return changed
}

func learn(known map[netip.Addr]time.Time, addrs []Address, now time.Time) (changed bool) {
	for _, a := range addrs {
		end := now.Add(min(max(a.TTL, minLife), maxLife))
		old, ok := known[a.IP]
		if !ok && len(known) >= maxAddresses {
			delete(known, first(known))
		}
		if !ok || end.After(old) {
			known[a.IP] = end
		}
		changed = changed || !ok
	}
	return changed
}

func first(known map[netip.Addr]time.Time) netip.Addr {
	return slices.MinFunc(slices.Collect(maps.Keys(known)), func(a, b netip.Addr) int {
		return cmp.Or(known[a].Compare(known[b]), a.Compare(b))
	})
}

// dropFirst forgets the name that would be forgotten first.
func (b *Book) dropFirst() (name string) {
	var least time.Time
	for n, known := range b.names {
		if end := last(known); name == "" || end.Before(least) {
			name, least = n, end
		}
	}
	delete(b.names, name)
	return name
}

func last(known map[netip.Addr]time.Time) (end time.Time) {
	for _, t := range known {
		if t.After(end) {
			end = t
		}
	}
	return end
}

// Due are the addresses whose time is over.
func (b *Book) Due(now time.Time) map[netip.Addr]bool {
	due := map[netip.Addr]bool{}
	for _, known := range b.names {
		for ip, end := range known {
			if !end.After(now) {
				due[ip] = true
			}
		}
	}
	return due
}

// Expire forgets what is over, and returns the names of which something was. What is still used is kept
// for a while more: a connection that policy let begin is not cut because the name has moved.
func (b *Book) Expire(now time.Time, used func(netip.Addr) bool) (changed []string) {
	for name, known := range b.names {
		before := len(known)
		for ip, end := range known {
			switch {
			case end.After(now):
			case used(ip):
				known[ip] = now.Add(minLife)
			default:
				delete(known, ip)
			}
		}
		if len(known) == 0 {
			delete(b.names, name)
		}
		if len(known) < before {
			changed = append(changed, name)
		}
	}
	return changed
}

// Record is what is known of a name; nil if nothing is.
func (b *Book) Record(name string) *Record {
	known := b.names[name]
	if known == nil {
		return nil
	}
	r := &Record{}
	r.Name = name
	for _, ip := range slices.SortedFunc(maps.Keys(known), netip.Addr.Compare) {
		r.Leases = append(r.Leases, Lease{IP: ip, End: known[ip]})
	}
	return r
}

// Restore takes over what an earlier agent knew, whether it is wanted (yet) or not. That one may have heard
// again since it wrote this down, so it ends only after minLife.
func (b *Book) Restore(r *Record, now time.Time) {
	known := make(map[netip.Addr]time.Time, len(r.Leases))
	for _, l := range r.Leases {
		known[l.IP] = l.End
		if least := now.Add(minLife); l.End.Before(least) {
			known[l.IP] = least
		}
	}
	b.names[r.Name] = known
}

// Size is how many names and addresses stand in the book.
func (b *Book) Size() (names, addresses int) {
	for _, known := range b.names {
		addresses += len(known)
	}
	return len(b.names), addresses
}
