package store

import (
	"encoding/binary"
	"hash/crc32"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// The buckets of the index.
const (
	bucketObjects = "objects" // id: entry
	bucketHidden  = "hidden"  // id: entry; gone, but the base of deltas that are not
	bucketPacks   = "packs"   // number, 8 bytes big-endian: packInfo
	bucketRefs    = "refs"    // name: id
	bucketMeta    = "meta"    // key: value
	bucketStore   = "store"   // what concerns the store itself: keys below
)

// Keys of bucketStore.
const (
	keyVersion = "version" // uvarint
	keySeq     = "seq"     // uvarint: number of the last transaction that is in the journal
)

func buckets() []string {
	return []string{bucketObjects, bucketHidden, bucketPacks, bucketRefs, bucketMeta, bucketStore}
}

// entry says where and how an object is stored.
type entry struct {
	kind    object.Kind
	enc     pack.Encoding
	depth   uint8 // records it takes above one without a base
	pack    uint64
	off     int64
	payload int // bytes
	plain   int // bytes
	base    object.ID
}

// recordLen returns the length of the record in the pack.
func (e *entry) recordLen() int {
	if e.enc.HasBase() {
		return pack.MaxHeadLen + e.payload
	}
	return pack.HeadLen + e.payload
}

func (e *entry) encode(b []byte) []byte {
	b = append(b, byte(e.kind)|byte(e.enc)<<4, e.depth)
	b = binary.AppendUvarint(b, e.pack)
	b = binary.AppendUvarint(b, uint64(e.off))
	b = binary.AppendUvarint(b, uint64(e.payload))
	b = binary.AppendUvarint(b, uint64(e.plain))
	if e.enc.HasBase() {
		b = append(b, e.base[:]...)
	}
	return b
}

func decodeEntry(b []byte) (e entry, err error) {
	bad := errs.New(errs.Damaged, "index entry is damaged")
	if len(b) < 6 {
		return e, bad
	}
	e.kind, e.enc, e.depth = object.Kind(b[0]&15), pack.Encoding(b[0]>>4), b[1]
	b = b[2:]
	var v [4]uint64
	for i := range v {
		u, k := binary.Uvarint(b)
		if k <= 0 || u > 1<<62 {
			return e, bad
		}
		v[i], b = u, b[k:]
	}
	e.pack, e.off, e.payload, e.plain = v[0], int64(v[1]), int(v[2]), int(v[3])
	if !e.kind.Valid() || e.enc > pack.Dict || e.payload > pack.MaxPayload || e.plain > object.MaxSize {
		return e, bad
	}
	if e.enc.HasBase() {
		if len(b) != object.IDSize {
			return e, bad
		}
		copy(e.base[:], b)
	} else if len(b) != 0 {
		return e, bad
	}
	return e, nil
}

// packInfo is what the index knows of a pack.
type packInfo struct {
	size   int64  // bytes that count; whatever is behind them was never committed
	count  uint64 // records
	sealed bool   // it does not grow any more
}

func (p packInfo) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(p.size))
	b = binary.AppendUvarint(b, p.count)
	if p.sealed {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodePackInfo(b []byte) (p packInfo, err error) {
	size, k := binary.Uvarint(b)
	if k <= 0 || size > 1<<62 {
		return p, errs.New(errs.Damaged, "index entry of a pack is damaged")
	}
	count, l := binary.Uvarint(b[k:])
	if l <= 0 || len(b) != k+l+1 || b[k+l] > 1 {
		return p, errs.New(errs.Damaged, "index entry of a pack is damaged")
	}
	return packInfo{int64(size), count, b[k+l] == 1}, nil
}

func packKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// seal adds a checksum to a value, for those whose damage nothing else would show: bbolt has none on its pages.
func seal(key string, value []byte) []byte {
	return binary.LittleEndian.AppendUint32(value[:len(value):len(value)], valueCRC(key, value))
}

// unseal is the inverse of seal.
func unseal(key string, b []byte) ([]byte, error) {
	if len(b) < 4 || valueCRC(key, b[:len(b)-4]) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, errs.WithHint(errs.New(errs.Damaged, "index: the value of %q is damaged", key), "run 'dm fsck'")
	}
	return b[: len(b)-4 : len(b)-4], nil
}

func valueCRC(key string, value []byte) uint32 {
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum([]byte(key), t), t, value)
}

// lookup finds an object's entry in the index.
func (s *Store) lookup(id object.ID) (e entry, ok bool, err error) {
	return s.lookupIn(id, bucketObjects)
}

// lookupBase finds the entry of a delta's base, which may be hidden.
func (s *Store) lookupBase(id object.ID) (e entry, ok bool, err error) {
	return s.lookupIn(id, bucketObjects, bucketHidden)
}

func (s *Store) lookupIn(id object.ID, buckets ...string) (e entry, ok bool, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		for _, bucket := range buckets {
			if v := tx.Bucket([]byte(bucket)).Get(id[:]); v != nil {
				ok = true
				e, err = decodeEntry(v)
				return err
			}
		}
		return nil
	})
	if err != nil {
		return entry{}, false, errs.New(errs.KindOf(err), "look up object %s: %w", id.Short(), err)
	}
	return e, ok, nil
}

// Has says whether the store has an object. A pruned commit whose content is gone it has not, nor a partial one.
func (s *Store) Has(id object.ID) (has bool, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		v := tx.Bucket([]byte(bucketObjects)).Get(id[:])
		if v == nil {
			return nil
		}
		e, err := decodeEntry(v)
		has = err == nil && !isHollow(tx, id, &e) && !isPartial(tx, id, &e)
		return err
	})
	if err != nil {
		return false, errs.New(errs.KindOf(err), "look up object %s: %w", id.Short(), err)
	}
	return has, nil
}
