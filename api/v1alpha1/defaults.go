// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Ports by which agents talk, where no configuration says otherwise.
const (
	DefaultBGPPort       = 179
	DefaultReflectorPort = 1179
	DefaultVXLANPort     = 4789
	DefaultProbePort     = 4793
)
