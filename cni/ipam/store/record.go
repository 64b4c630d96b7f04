// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"net/netip"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
)

// The file's layout. Every value ends in a CRC-32 of its bucket, key and content, and the meta bucket
// holds a digest of all records, so that a record that is lost, or comes back from an old page,
// shows.
const (
	metaBucket       = "meta"
	attachmentBucket = "attachments" // containerID/ifName → JSON of ipam.Allocation
	releasedBucket   = "released"    // address, 4 or 16 bytes → nanoseconds since 1970
	blockBucket      = "blocks"      // CIDR → JSON of ipam.Block

	versionKey = "version"
	digestKey  = "digest"
	version    = 1
)

// recordKey is where a record is.
type recordKey struct{ bucket, key string }

// record is a value, with its checksum, or nil: none.
type record struct {
	recordKey
	value []byte
}

// contents are what a file holds.
type contents struct {
	attachments []ipam.Allocation
	released    map[netip.Addr]time.Time
	blocks      []ipam.Block
}

func sealed(bucket, key string, content []byte) record {
	k := recordKey{bucket, key}
	return record{k, binary.BigEndian.AppendUint32(content, k.crc(content))}
}

func (k recordKey) crc(content []byte) uint32 {
	sum := crc32.NewIEEE()
	_, _ = fmt.Fprintf(sum, "%s\x00%s\x00", k.bucket, k.key)
	_, _ = sum.Write(content)
	return sum.Sum32()
}

// unseal checks and removes the checksum.
func (k recordKey) unseal(value []byte) ([]byte, error) {
	n := len(value) - 4
	if n < 0 || binary.BigEndian.Uint32(value[n:]) != k.crc(value[:n]) {
		return nil, fmt.Errorf("%w: checksum of a record in %s", errDamaged, k.bucket)
	}
	return value[:n], nil
}

func deleted(bucket, key string) record { return record{recordKey: recordKey{bucket, key}} }

func attachmentKey(a cni.Attachment) string { return a.ContainerID + "/" + a.IfName }

func addrKey(ip netip.Addr) string { return string(ip.AsSlice()) }

func attachmentRecord(x ipam.Allocation) record {
	return jsonRecord(attachmentBucket, attachmentKey(x.Attachment), x)
}

func blockRecord(b ipam.Block) record { return jsonRecord(blockBucket, b.CIDR.String(), b) }

func releasedRecord(ip netip.Addr, at time.Time) record {
	return sealed(releasedBucket, addrKey(ip), binary.BigEndian.AppendUint64(nil, uint64(at.UnixNano())))
}

func versionRecord() record { return sealed(metaBucket, versionKey, []byte{version}) }

func jsonRecord(bucket, key string, v any) record {
	content, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data always encodes
	}
	return sealed(bucket, key, content)
}

// puts counts the attachments that records write.
func puts(records []record) (n int) {
	for _, r := range records {
		if r.bucket == attachmentBucket && r.value != nil {
			n++
		}
	}
	return n
}

// digest is a checksum of a set of records that can be kept up to date record by record.
type digest struct{ count, xor uint64 }

// replace takes one value of a key out and another in; either may be nil.
func (d *digest) replace(k recordKey, old, value []byte) {
	if old != nil {
		d.count--
		d.xor ^= k.hash(old)
	}
	if value != nil {
		d.count++
		d.xor ^= k.hash(value)
	}
}

func (k recordKey) hash(value []byte) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s\x00%s\x00", k.bucket, k.key)
	_, _ = h.Write(value)
	return h.Sum64()
}

func (d digest) record() record {
	return sealed(metaBucket, digestKey, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, d.count), d.xor))
}

func put(tx *bolt.Tx, r record) error {
	b := tx.Bucket([]byte(r.bucket))
	if b == nil {
		return fmt.Errorf("%w: bucket %s is missing", errDamaged, r.bucket)
	}
	if r.value == nil {
		return b.Delete([]byte(r.key))
	}
	return b.Put([]byte(r.key), r.value)
}

// read fills the mirror and the contents, and checks everything.
func (d *disk) read(tx *bolt.Tx) error {
	meta := tx.Bucket([]byte(metaBucket))
	if meta == nil {
		return fmt.Errorf("%w: bucket %s is missing", errDamaged, metaBucket)
	}
	v, err := recordKey{metaBucket, versionKey}.unseal(meta.Get([]byte(versionKey)))
	if err != nil {
		return err
	}
	if len(v) != 1 || v[0] != version {
		return fmt.Errorf("its format is version %v, this program knows %d", v, version)
	}
	d.loaded.released = map[netip.Addr]time.Time{}
	for _, bucket := range []string{attachmentBucket, releasedBucket, blockBucket} {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return fmt.Errorf("%w: bucket %s is missing", errDamaged, bucket)
		}
		if err := b.ForEach(func(k, v []byte) error { return d.readRecord(recordKey{bucket, string(k)}, v) }); err != nil {
			return err
		}
	}
	if string(meta.Get([]byte(digestKey))) != string(d.digest.record().value) {
		return fmt.Errorf("%w: records are missing or old", errDamaged)
	}
	return nil
}

func (d *disk) readRecord(k recordKey, value []byte) error {
	content, err := k.unseal(value)
	if err != nil {
		return err
	}
	d.mirror[k] = append([]byte(nil), value...)
	d.digest.replace(k, nil, value)
	switch k.bucket {
	case attachmentBucket:
		var x ipam.Allocation
		if err = json.Unmarshal(content, &x); err == nil {
			d.loaded.attachments = append(d.loaded.attachments, x)
		}
	case blockBucket:
		var b ipam.Block
		if err = json.Unmarshal(content, &b); err == nil {
			d.loaded.blocks = append(d.loaded.blocks, b)
		}
	case releasedBucket:
		ip, ok := netip.AddrFromSlice([]byte(k.key))
		if !ok || len(content) != 8 {
			return fmt.Errorf("%w: released address", errDamaged)
		}
		d.loaded.released[ip] = time.Unix(0, int64(binary.BigEndian.Uint64(content)))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}
