// SPDX-License-Identifier: Apache-2.0

// Package agenttest runs whole agents, with BIRD as the switches between them, and breaks the fabric
// under traffic. It has tests only.
package agenttest
