// SPDX-License-Identifier: Apache-2.0

// Package reflector is a BGP route reflector (RFC 4456) for very many clients: what it costs to tell
// n clients of a route is one encoding and n writes of the same bytes. It owns its sessions and its
// table, speaks iBGP alone, and never touches the kernel's routes or the next hops that it is given.
//
// # Data flow
//
//	client ── TCP ──▶ session.read: parse, validate, rewrite for reflection ──▶ batch
//	                                                                             │ bounded channel
//	                                                                             ▼
//	      Apply, Snapshot, dial, accept ──────────────▶ core: one goroutine owns table, groups, peers
//	                                                                             │ flush, at most each millisecond
//	                                                                             ▼
//	                                      group: log of blocks (encoded UPDATEs), built once
//	                                          │            │            │   a cursor for each client
//	client ◀─ TCP ── session.write: writev of the shared bytes, except the client's own
//
// A session has two goroutines: one reads and is RFC 4271's state machine, the other writes once the
// session is established. What a client sent is checked (RFC 7606) and rewritten where it was read, in
// that client's goroutine: ORIGINATOR_ID and CLUSTER_LIST are added, attributes are put in order, AS
// numbers get four octets. The result is a byte string, which the core interns: equal attributes are
// one *attrs, however many prefixes and clients have them. No attribute is ever decoded into a tree.
//
// A reader that outpaces the core waits for it, and so does, by TCP, its client.
//
// # Types
//
//	prefix            a compact, comparable key: no pointer in it
//	attrs             interned attributes: the bytes that go out, and what the decision process needs
//	source            who sends routes: a client through all its sessions, as graceful restart wants
//	dest, path        a prefix and the paths to it, one for each source; table: those of a family
//	block             a run of whole messages, with what is left out for, or sent only to, one source
//	group             sessions with equal capabilities and policy: one log, many cursors
//	peer, session     a neighbour, and one TCP connection with it
//
// # Update groups
//
// Sessions with equal families, message size, AS number size, add-paths, client role and Advertise
// policy form a group. Each flush appends one block to each group's log. A block that all cursors have
// passed is garbage: nothing refers to it. A client that joins gets the whole table as a block that is
// shared as well (and used again until the log has outgrown it), and then the log from there on.
//
// Split horizon in a shared log: bytes that came from client C are marked with C's source and left out
// when C's writer passes them. When the best path moves from D to C, everyone but C gets an
// announcement, which replaces D's; C, which had D's path, gets a withdrawal that nobody else gets. A
// withdrawal goes to everyone, since to C it says nothing new. So C never sees its own route, and never
// keeps one that the reflector no longer has.
//
// # Slow clients
//
// A write that makes no progress for the negotiated hold time ends the session (RFC 9687 allows it
// later; we have a shared log to keep short), and so does a cursor that lags more than Options.MaxLag
// bytes behind. Either costs that client alone, and by then all that was held for it was held once.
//
// # Clients that do harm
//
// A session that comes and goes costs every other client two messages. damping keeps a client in Idle
// whose sessions are short one after the other (RFC 4271 §8.1.1). core.pace gives an endless run of
// flushes, which one flapping route can cause, a slower rhythm than a burst. MaxPrefixes bounds what one
// client may have, Options.MaxOctets what all may; core.relieve shuts out whoever has most. A reader
// waits while the core is behind, so a flood of messages is slowed down by TCP.
//
// # Deviations, chosen
//
// The interval of RFC 4271 §9.2.1.1 (MinRouteAdvertisementInterval) is not 5 s but nothing after a quiet
// time, and then 1 to 10 ms while changes keep coming. A peer that kept its process but lost its TCP connection (restart
// bit clear) keeps its stale routes even without the forwarding bit of RFC 4724: GoBGP sets that bit
// only while restarting, and to honour it would withdraw a healthy node's routes. Sessions with
// another AS are refused by Config.Validate: eBGP is the speakers' work.
//
// # Failure
//
// A panic in a session's goroutine ends that session, with the stack in the log. A panic in the core
// ends the session whose event it was handling.
package reflector
