// SPDX-License-Identifier: Apache-2.0

package speaker

import (
	"context"
	"log/slog"
	"net/netip"
)

// tap is the handler behind GoBGP's logger. GoBGP says why a connection attempt failed, and which
// NOTIFICATION it sent or received, nowhere but in its log; so this reads them there. The speaker
// itself logs what an operator wants, so GoBGP's own lines go on as debug, its errors as warnings.
type tap struct {
	next slog.Handler
	note func(netip.Addr, report)
	peer netip.Addr // of the "Key" of GoBGP's per-peer loggers
}

// Enabled is always true for a peer's logger: it logs failed connection attempts at debug level. That
// of the tables logs two lines for each route, which nobody wants.
func (t *tap) Enabled(ctx context.Context, level slog.Level) bool {
	return t.peer.IsValid() || level >= slog.LevelError || t.next.Enabled(ctx, slog.LevelDebug)
}

func (t *tap) Handle(ctx context.Context, rec slog.Record) error {
	if t.peer.IsValid() {
		if r, ok := parseRecord(rec); ok {
			t.note(t.peer, r)
		}
	}
	level := slog.LevelDebug
	if rec.Level >= slog.LevelError && rec.Message != "failed to stop BGP server" { // it was stopped already
		level = slog.LevelWarn
	}
	return passOn(ctx, t.next, rec, level)
}

// passOn logs what GoBGP said as ours, at a level of ours.
func passOn(ctx context.Context, next slog.Handler, rec slog.Record, level slog.Level) error {
	if !next.Enabled(ctx, level) {
		return nil
	}
	out := slog.NewRecord(rec.Time, level, "gobgp: "+rec.Message, rec.PC)
	rec.Attrs(func(a slog.Attr) bool { out.AddAttrs(a); return true })
	return next.Handle(ctx, out)
}

func (t *tap) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *t
	out.next = t.next.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == "Key" {
			if addr, err := netip.ParseAddr(a.Value.String()); err == nil {
				out.peer = addr.Unmap()
			}
		}
	}
	return &out
}

func (t *tap) WithGroup(name string) slog.Handler {
	out := *t
	out.next = t.next.WithGroup(name)
	return &out
}

// parseRecord reads a line of GoBGP's log for a reason why a session is down.
func parseRecord(rec slog.Record) (report, bool) {
	switch rec.Message {
	case "failed to connect":
		return dialText(attr(rec, "Error").String()), true
	case "Peer Down":
		// No news; but it takes the view's lock in the session's goroutine, which is about to mark
		// paths as stale that the watcher has read. GoBGP itself does not order the two.
		return report{}, true
	case "outgoing connection IO error":
		return report{text: "connection closed by peer before OPEN (does it expect us?)", vague: true}, true
	case "sent notification", "received notification":
		direction := "sent"
		if rec.Message == "received notification" {
			direction = "received"
		}
		return notificationText(direction, code(rec, "Code"), code(rec, "Subcode"), attr(rec, "Communicated-Reason").String()), true
	}
	return report{}, false
}

func attr(rec slog.Record, key string) slog.Value {
	v := slog.StringValue("")
	rec.Attrs(func(a slog.Attr) bool {
		if a.Key == key {
			v = a.Value
			return false
		}
		return true
	})
	return v
}

func code(rec slog.Record, key string) uint8 {
	v := attr(rec, key)
	if v.Kind() != slog.KindInt64 {
		return 0
	}
	return uint8(v.Int64())
}
