// Package pack reads and writes packs: files and streams of many stored objects.
//
// A record is one stored object; how it is stored (raw, compressed, as a delta against another object) is its encoding
// and does not touch its id. A Codec turns plain bytes into records and back. Writer and Reader handle a pack as a
// stream, the form in which it travels; a store appends records to pack files and reads them by offset (AppendHeader,
// ParseHead, ParseRecord), and searches damaged files with Scan.
//
// The format, byte by byte, is in docs/format/pack.md. Everything read here may come from a hostile peer: lengths are
// checked before anything is allocated, decoders never write more than the plain length that was checked, and an object is
// what it claims to be only after its id was compared with object.Sum, which is the caller's duty.
package pack

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"dm/internal/errs"
	"dm/object"
)

// Encoding says how an object is stored in its record. The values are part of the format.
type Encoding uint8

// The encodings.
const (
	Raw   Encoding = 0 // the plain bytes
	Zstd  Encoding = 1 // a zstd frame
	Delta Encoding = 2 // the base with stretches replaced at the same offsets
	Dict  Encoding = 3 // a zstd frame with the base as raw-content dictionary
)

// HasBase says whether records of this encoding need another object.
func (e Encoding) HasBase() bool { return e == Delta || e == Dict }

func (e Encoding) String() string {
	switch e {
	case Raw:
		return "raw"
	case Zstd:
		return "zstd"
	case Delta:
		return "delta"
	case Dict:
		return "dict"
	}
	return "unknown"
}

// Lengths of the format's parts, in bytes, and limits.
const (
	HeaderLen  = 16 // of a pack
	HeadLen    = 56 // of a record without a base
	BaseLen    = object.IDSize
	MaxHeadLen = HeadLen + BaseLen
	MaxPayload = object.MaxSize + 64<<10
	endLen     = 16 // payload of the end record

	// MaxRecord is the length of the longest record.
	MaxRecord = MaxHeadLen + MaxPayload
)

const (
	version = 1
	kindEnd = 0x45
)

const (
	packMagic   = "\xaddmpack\n"
	recordMagic = "\xaddmr"
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// AppendHeader appends the header with which every pack begins.
func AppendHeader(b []byte) []byte {
	start := len(b)
	b = append(b, packMagic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, 0)
	return binary.LittleEndian.AppendUint32(b, castagnoli(b[start:]))
}

// CheckHeader says what is wrong with the first HeaderLen bytes of a pack.
func CheckHeader(b []byte) error {
	if len(b) < HeaderLen || string(b[:8]) != packMagic {
		return errs.New(errs.Damaged, "not a pack: the first bytes are wrong")
	}
	if castagnoli(b[:12]) != binary.LittleEndian.Uint32(b[12:]) {
		return errs.New(errs.Damaged, "pack header is damaged")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v > version {
		return errs.WithHint(errs.New(errs.Damaged, "pack version %d is newer than this dm, which knows %d", v, version),
			"install a newer dm")
	} else if v != version {
		return errs.New(errs.Damaged, "pack version %d does not exist", v)
	}
	if f := binary.LittleEndian.Uint16(b[10:]); f != 0 {
		return errs.WithHint(errs.New(errs.Damaged, "pack has flags %#x, which this dm does not know", f),
			"install a newer dm")
	}
	return nil
}

// Head is what a record says before its payload.
type Head struct {
	Kind       object.Kind
	Encoding   Encoding
	PlainLen   int
	PayloadLen int
	PayloadCRC uint32
	ID         object.ID
	Base       object.ID // zero without a base
	end        bool
}

// Len returns the length of the head itself in bytes.
func (h *Head) Len() int {
	if h.Encoding.HasBase() {
		return MaxHeadLen
	}
	return HeadLen
}

// RecordLen returns the length of the whole record in bytes.
func (h *Head) RecordLen() int { return h.Len() + h.PayloadLen }

// put writes the head into b, which has room for it.
func (h *Head) put(b []byte) {
	copy(b, recordMagic)
	b[4] = byte(h.Kind)
	if h.end {
		b[4] = kindEnd
	}
	b[5] = byte(h.Encoding)
	b[6], b[7] = 0, 0
	binary.LittleEndian.PutUint32(b[8:], uint32(h.PlainLen))
	binary.LittleEndian.PutUint32(b[12:], uint32(h.PayloadLen))
	copy(b[16:], h.ID[:])
	binary.LittleEndian.PutUint32(b[48:], h.PayloadCRC)
	n := HeadLen - 4
	if h.Encoding.HasBase() {
		n += copy(b[n:], h.Base[:])
	}
	binary.LittleEndian.PutUint32(b[n:], castagnoli(b[:n]))
}

// ParseHead reads the head of the record at the front of b, which holds MaxHeadLen bytes or ends where the pack ends.
func ParseHead(b []byte) (Head, error) {
	if len(b) < HeadLen {
		return Head{}, errs.New(errs.Damaged, "record is cut short")
	}
	if !bytes.HasPrefix(b, []byte(recordMagic)) {
		return Head{}, errs.New(errs.Damaged, "no record here")
	}
	h := Head{
		Kind:       object.Kind(b[4]),
		Encoding:   Encoding(b[5]),
		PlainLen:   int(binary.LittleEndian.Uint32(b[8:])),
		PayloadLen: int(binary.LittleEndian.Uint32(b[12:])),
		PayloadCRC: binary.LittleEndian.Uint32(b[48:]),
	}
	copy(h.ID[:], b[16:])
	n := HeadLen - 4
	if h.Encoding.HasBase() {
		if len(b) < MaxHeadLen {
			return Head{}, errs.New(errs.Damaged, "record is cut short")
		}
		n += copy(h.Base[:], b[n:])
	}
	if castagnoli(b[:n]) != binary.LittleEndian.Uint32(b[n:]) {
		return Head{}, errs.New(errs.Damaged, "record head is damaged")
	}
	return h, h.check(b)
}

// check looks at the fields of a head whose checksum is right: what a writer with bad intent, or a newer one, may send.
func (h *Head) check(b []byte) error {
	if b[4] == kindEnd {
		h.end = true
		h.Kind = 0
		if h.Encoding != Raw || h.PlainLen != 0 || h.PayloadLen != endLen || !h.ID.IsZero() {
			return errs.New(errs.Damaged, "bad end record")
		}
	} else if !h.Kind.Valid() {
		return errs.New(errs.Damaged, "record of unknown kind %d", b[4])
	}
	switch {
	case h.Encoding > Dict:
		return errs.WithHint(errs.New(errs.Damaged, "record %s has encoding %d, which this dm does not know", h.ID.Short(),
			h.Encoding), "install a newer dm")
	case b[6] != 0 || b[7] != 0:
		return errs.New(errs.Damaged, "record %s has bits that this dm does not know", h.ID.Short())
	case h.PlainLen > object.MaxSize:
		return errs.New(errs.Damaged, "record %s has %d plain bytes, at most %d are allowed", h.ID.Short(), h.PlainLen,
			object.MaxSize)
	case h.PayloadLen > MaxPayload:
		return errs.New(errs.Damaged, "record %s has %d stored bytes, at most %d are allowed", h.ID.Short(), h.PayloadLen,
			MaxPayload)
	case h.Encoding == Raw && !h.end && h.PlainLen != h.PayloadLen:
		return errs.New(errs.Damaged, "record %s is raw and has two lengths", h.ID.Short())
	case h.Encoding.HasBase() && h.Base == h.ID:
		return errs.New(errs.Damaged, "record %s is its own base", h.ID.Short())
	}
	return nil
}

// Record is a stored object.
type Record struct {
	Head
	Payload []byte
}

// ParseRecord reads the record at the front of b, payload checksum included. The payload is not copied.
func ParseRecord(b []byte) (Record, error) {
	h, err := ParseHead(b)
	if err != nil {
		return Record{}, err
	}
	if len(b) < h.RecordLen() {
		return Record{}, errs.New(errs.Damaged, "record %s is cut short", h.ID.Short())
	}
	r := Record{h, b[h.Len():h.RecordLen()]}
	return r, r.checkPayload()
}

func (r *Record) checkPayload() error {
	if castagnoli(r.Payload) != r.PayloadCRC {
		return errs.New(errs.Damaged, "payload of record %s is damaged", r.ID.Short())
	}
	return nil
}

// Append appends the record as it stands in a pack. Lengths and checksum are those of the payload.
func (r *Record) Append(b []byte) []byte {
	start := len(b)
	r.PayloadLen = len(r.Payload)
	r.PayloadCRC = castagnoli(r.Payload)
	var head [MaxHeadLen]byte
	b = append(b, head[:r.Len()]...)
	r.put(b[start:])
	return append(b, r.Payload...)
}

// AppendEnd appends the end record of a pack with count records that is size bytes long so far.
func AppendEnd(b []byte, count, size uint64) []byte {
	var p [endLen]byte
	binary.LittleEndian.PutUint64(p[:], count)
	binary.LittleEndian.PutUint64(p[8:], size)
	r := Record{Head{end: true}, p[:]}
	return r.Append(b)
}

// EndLen is the length of the whole end record in bytes.
const EndLen = HeadLen + endLen
