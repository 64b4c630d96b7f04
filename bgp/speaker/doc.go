// SPDX-License-Identifier: Apache-2.0

// Package speaker is the node's BGP speaker: it makes an embedded GoBGP server equal to a
// bgp.Desired and tells what that server knows as a bgp.Snapshot. It is the only importer of
// GoBGP's server, and no type of GoBGP leaves it. It opens no gRPC listener, and it never touches
// the kernel's routes.
//
// # Routes
//
// GoBGP's own table holds nothing but our origins: the import policy refuses everything, so nothing
// learned can ever be advertised to anyone, whatever the kinds of the two sessions. The routes of
// the peers are taken from the pre-policy watch, one Adj-RIB-In per session, and filtered here
// (Accept, AllowOwnASN, usable next hop). Refused routes are kept beside the accepted ones, so a
// changed filter needs neither a session reset nor a route refresh. What a peer can make us hold is
// bounded by Options.MaxPrefixes.
//
// Origins are sent with exactly the next hop that they were given, on iBGP and on eBGP, and also to
// a session of the other address family: GoBGP rewrites only unspecified next hops of local paths.
//
// # Graceful restart
//
// Staleness is ours as well (RFC 4724 §4.2): routes of a peer whose session ended without a
// NOTIFICATION become Stale if the peer had announced graceful restart for their family. A peer that
// was silent for the hold time may be dead with all that it forwarded: its routes are dropped, since
// for traffic there is a tunnel to fall back to. Stale routes are dropped when the restart time that it announced has passed, when it comes
// back without graceful restart for the family, or when its End-of-RIB comes without them. GoBGP
// would drop them at the first failed attempt to reconnect. The forwarding-state bit is not looked
// at: GoBGP sets it only while it restarts itself, so honouring it would withdraw the routes of a
// healthy peer for a moment after each broken TCP connection.
//
// With Global.Restarting our own OPEN carries the restart bit for the first restart time after the
// start, and our routes are held back until all peers have sent End-of-RIB or deferral has passed.
//
// # BFD
//
// BFD is GoBGP's, but in a second server that speaks BGP with nobody (bfdEngine): in the first one
// GoBGP would reset the BGP session on AdminDown and on the end of a BFD session that never was up, and
// would greet the next session with the NOTIFICATION of a failure in between. Its log tells the states
// as they change. A failure drops the peer's routes at once, stale ones of a router included, and
// replaces the peer in the first server. BFD runs from when the BGP session is up until BFD fails or
// nobody wants it.
//
// GoBGP cannot say AdminDown. Before a graceful stop, and before a BFD session ends on purpose, we take
// one packet of each peer from GoBGP (a socket bound to the address is preferred by the kernel), learn
// the discriminators from it, and say AdminDown ourselves (admindown.go): at a stop after the TCP
// connections have ended, since FRR 8 and BIRD 2 reset an established session on AdminDown.
//
// # Known limits of GoBGP 4.8
//
// After a session ends GoBGP stays in Idle for 5 s, whatever the timers say, and refuses connections
// meanwhile. A peer that stops reading is not dropped while it sends KEEPALIVEs; what may pile up
// for it here is a few messages per change of our own origins, so no guard is built. The AS number
// that a wrong peer sent is not told to us, only that it was wrong. table.SelectionOptions and
// table.UseMultiplePaths are variables of the process; they are left at their defaults.
package speaker
