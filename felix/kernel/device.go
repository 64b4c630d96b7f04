// SPDX-License-Identifier: Apache-2.0

package kernel

import "strings"

// DeviceNameSize is IFNAMSIZ: the name of a device is shorter.
const DeviceNameSize = 16

// PaddedName is a device's name as nf_tables holds it: padded with zeros. It must be shorter than DeviceNameSize.
func PaddedName(device string) string {
	return device + strings.Repeat("\x00", DeviceNameSize-len(device))
}
