// SPDX-License-Identifier: Apache-2.0

package trigger

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	const firstRetry, lastRetry = 200 * time.Millisecond, 30 * time.Second
	b := Backoff{First: firstRetry, Most: lastRetry}
	now := time.Unix(1000, 0)
	if b.Due(now) {
		t.Error("due without a failure")
	}
	b.Failed(now)
	first := b.At()
	b.Failed(now.Add(time.Millisecond)) // a run that somebody else asked for
	if b.At() != first || b.At().Sub(now) != firstRetry {
		t.Errorf("retry after %s, then after %s, want %s", first.Sub(now), b.At().Sub(now), firstRetry)
	}
	for range 20 {
		now = b.At()
		if !b.Due(now) {
			t.Fatal("not due when it is time")
		}
		b.Failed(now)
	}
	if b.At().Sub(now) != lastRetry {
		t.Errorf("the wait grows to %s, want %s", b.At().Sub(now), lastRetry)
	}
	b.Succeeded()
	if b.Due(b.At().Add(lastRetry)) {
		t.Error("due after a success")
	}
	b.Failed(now)
	if b.At().Sub(now) != firstRetry {
		t.Errorf("after a success the wait is %s, want %s", b.At().Sub(now), firstRetry)
	}
}
