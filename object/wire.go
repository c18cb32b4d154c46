package object

import (
	"encoding/binary"
	"math"

	"dm/internal/errs"
)

// formatVersion is the first byte of every list, tree and commit. A reader refuses a higher one.
const formatVersion = 1

// reader takes fields off the front of an encoded object. After the first bad field it stays failed, so callers check
// once, at the end.
type reader struct {
	kind Kind
	b    []byte
	err  error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = errs.New(errs.Damaged, "decode %s: %s", r.kind, what)
		r.b = nil
	}
}

func (r *reader) version() {
	switch v := r.byte(); {
	case r.err != nil:
	case v > formatVersion:
		r.err = errs.WithHint(errs.New(errs.Damaged, "decode %s: format version %d is newer than this dm, which knows %d",
			r.kind, v, formatVersion), "install a newer dm")
	case v != formatVersion:
		r.fail("bad version")
	}
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("too short")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// uint reads a varint of at most limit. Only the shortest form is accepted: one value, one encoding.
func (r *reader) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	switch {
	case n <= 0:
		r.fail("bad number")
		return 0
	case n > 1 && r.b[n-1] == 0:
		r.fail("number with needless zeros")
		return 0
	case v > limit:
		r.fail("number too large")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	u := r.uint(math.MaxUint64)
	return int64(u>>1) ^ -int64(u&1)
}

func (r *reader) bytes(limit int) []byte {
	n := int(r.uint(uint64(limit)))
	if n > len(r.b) {
		r.fail("too short")
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) id() (id ID) {
	if len(r.b) < IDSize {
		r.fail("too short")
		return id
	}
	copy(id[:], r.b)
	r.b = r.b[IDSize:]
	return id
}

// count reads the number of items that follow, each of at least min bytes.
func (r *reader) count(min int) int {
	n := r.uint(MaxSize)
	if n*uint64(min) > uint64(len(r.b)) {
		r.fail("count larger than what follows")
		return 0
	}
	return int(n)
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail("bytes after the end")
	}
	return r.err
}

func appendInt(b []byte, v int64) []byte {
	return binary.AppendUvarint(b, uint64(v<<1)^uint64(v>>63))
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}
