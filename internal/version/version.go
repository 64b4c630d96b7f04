// SPDX-License-Identifier: Apache-2.0

// Package version holds the version of the program, as the linker sets it.
package version

// Version is set by -ldflags "-X .../internal/version.Version=v1.2.3".
var Version = "v0.0.0-dev"
