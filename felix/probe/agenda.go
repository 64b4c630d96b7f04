// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"container/heap"
	"math"
	"time"
)

// entry is something to be done at a time. It is embedded in what it is about.
type entry[T any] struct {
	due   time.Time
	of    T
	index int // in the agenda, plus one; 0: it is in none
}

// agenda keeps entries by time.
type agenda[T any] struct{ h entries[T] }

// set puts the entry in, or moves it.
func (a *agenda[T]) set(e *entry[T], due time.Time) {
	e.due = due
	if e.index > 0 {
		heap.Fix(&a.h, e.index-1)
		return
	}
	heap.Push(&a.h, e)
}

// remove takes the entry out, if it is in.
func (a *agenda[T]) remove(e *entry[T]) {
	if e.index > 0 {
		heap.Remove(&a.h, e.index-1)
	}
}

// first returns the earliest entry, or nil.
func (a *agenda[T]) first() *entry[T] {
	if len(a.h) == 0 {
		return nil
	}
	return a.h[0]
}

type entries[T any] []*entry[T]

func (h entries[T]) Len() int           { return len(h) }
func (h entries[T]) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h entries[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

// Push implements heap.Interface.
func (h *entries[T]) Push(x any) {
	e := x.(*entry[T])
	e.index = len(*h) + 1
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *entries[T]) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = 0
	return e
}

// bucket is a token bucket.
type bucket struct {
	rate, size float64 // tokens per second, and at most
	level      float64
	at         time.Time
}

func (b *bucket) fill(now time.Time) {
	if b.at.IsZero() {
		b.level = b.size
	} else if d := now.Sub(b.at); d > 0 {
		b.level = min(b.size, b.level+d.Seconds()*b.rate)
	}
	b.at = now
}

// take takes n tokens if there is at least one: it may go into debt, and then waits for longer.
func (b *bucket) take(now time.Time, n int) bool {
	b.fill(now)
	if b.level < 1 {
		return false
	}
	b.level -= float64(n)
	return true
}

// ready is when there is a token again.
func (b *bucket) ready(now time.Time) time.Time {
	b.fill(now)
	if b.level >= 1 {
		return now
	}
	return now.Add(time.Duration(math.Ceil((1 - b.level) / b.rate * float64(time.Second))))
}
