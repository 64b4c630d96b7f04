// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
)

var (
	errNotYet  = errors.New("the policy of the pod is not in force yet")
	errUnknown = errors.New("the API server has not shown the pod to this node's agent, so nobody knows which policies select it")
)

// ErrNotBegun says that nothing was put in force since the agent started.
var ErrNotBegun = errors.New("no policy is in force yet since the agent started")

// InForce returns once the policy of the pod with this device is in force, or why it is not when ctx ends.
func (e *Enforcer) InForce(ctx context.Context, device string) error {
	for {
		moved, err := e.standing(device)
		if err == nil {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (e *Enforcer) standing(device string) (moved <-chan struct{}, err error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	unknown, ok := e.force.unknown[device]
	switch {
	case e.lastErr != nil:
		err = e.lastErr
	case !ok:
		err = errNotYet
	case unknown:
		err = errUnknown
	}
	return e.moved, err
}

// Ready says whether new pods can be taken.
func (e *Enforcer) Ready() error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if !e.begun {
		return errors.Join(ErrNotBegun, e.lastErr)
	}
	return nil
}
