// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// condition is what the Ready condition of an object should say.
type condition struct {
	status  metav1.ConditionStatus
	reason  string
	message string
}

func conditionStatus(ok bool) metav1.ConditionStatus {
	if ok {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}

// setReady sets the Ready condition. It returns whether the status or the reason differs from
// before: then, and only then, an Event tells of it.
func setReady(conditions *[]metav1.Condition, generation int64, c condition) bool {
	before := meta.FindStatusCondition(*conditions, v1alpha1.ConditionReady)
	event := before == nil || before.Status != c.status || before.Reason != c.reason
	meta.SetStatusCondition(conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: c.status, Reason: c.reason, Message: c.message, ObservedGeneration: generation,
	})
	return event
}

// eventType is Warning for what somebody should look at.
func eventType(status metav1.ConditionStatus, reason string) string {
	if status == metav1.ConditionTrue && reason != v1alpha1.ReasonExhausted {
		return corev1.EventTypeNormal
	}
	return corev1.EventTypeWarning
}

// note cuts a message to what an Event may hold.
func note(message string) string {
	if len(message) > maxNote {
		return strings.ToValidUTF8(message[:maxNote-3], "") + "..."
	}
	return message
}
