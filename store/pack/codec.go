package pack

import (
	"encoding/binary"
	"sync"

	"github.com/klauspost/compress/zstd"

	"dm/internal/background"
	"dm/internal/errs"
	"dm/object"
)

// dictID is the dictionary id in frames that have their base as dictionary. zstd wants one other than zero.
const dictID = 0x646d

// Level says how much time to spend on compression.
type Level uint8

// The levels.
const (
	Fast  Level = iota // for commits
	Small              // for repacking when idle
)

// Codec encodes and decodes objects. It is safe for concurrent use and keeps at most one compressor and one decompressor
// for each of background.Workers, so that its memory does not grow with the number of callers.
type Codec struct {
	enc     *zstd.Encoder
	small   *zstd.Encoder // for what is worth more time
	dec     *zstd.Decoder
	dictEnc chan *zstd.Encoder // idle ones; nil where one is still to be made
	dictDec chan *zstd.Decoder
	scratch sync.Pool // of *scratch
}

// scratch is what a diff needs for a moment.
type scratch struct {
	runs []run
	lits []byte
	body []byte
	try  []byte
}

// NewCodec returns a codec. Close it when no call is running any more.
func NewCodec(level Level) (*Codec, error) {
	n := background.Workers()
	enc, err := zstd.NewWriter(nil, encoderOptions(level, n)...)
	if err != nil {
		return nil, err
	}
	small, err := zstd.NewWriter(nil, encoderOptions(Small, n)...)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, decoderOptions(n)...)
	if err != nil {
		return nil, err
	}
	c := &Codec{enc: enc, small: small, dec: dec, dictEnc: make(chan *zstd.Encoder, n), dictDec: make(chan *zstd.Decoder, n)}
	for range n {
		e, err := zstd.NewWriter(nil, encoderOptions(level, 1)...)
		if err != nil {
			return nil, err
		}
		c.dictEnc <- e
		d, err := zstd.NewReader(nil, decoderOptions(1)...)
		if err != nil {
			return nil, err
		}
		c.dictDec <- d
	}
	c.scratch.New = func() any { return new(scratch) }
	return c, nil
}

// Objects carry their own checksums, so frames need none.
func encoderOptions(level Level, n int) []zstd.EOption {
	l := zstd.SpeedFastest
	if level == Small {
		l = zstd.SpeedDefault
	}
	return []zstd.EOption{
		zstd.WithEncoderLevel(l), zstd.WithEncoderConcurrency(n), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(window),
	}
}

// window is how far back an encoder looks, in bytes: as far as two of the largest chunks. What it remembers takes a few times
// as much memory, in each encoder that has a dictionary.
const window = 512 << 10

// The limit to the capacity of the target is what keeps a small frame from becoming a gigabyte.
func decoderOptions(n int) []zstd.DOption {
	return []zstd.DOption{
		zstd.WithDecoderConcurrency(n), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(2 * object.MaxSize), zstd.WithDecoderMaxWindow(2 * object.MaxSize),
	}
}

// Close frees the codec's memory.
func (c *Codec) Close() {
	c.enc.Close()
	c.small.Close()
	c.dec.Close()
	for range cap(c.dictEnc) {
		(<-c.dictEnc).Close()
		(<-c.dictDec).Close()
	}
}

// Append appends the record of an object that stands alone: compressed, or raw where that gains less than a sixteenth.
func (c *Codec) Append(dst []byte, kind object.Kind, id object.ID, plain []byte) ([]byte, Head) {
	return appendAlone(c.enc, dst, kind, id, plain)
}

// AppendOver appends the record of an object that takes the place of another: against that as base, if its payload then has
// at most limit bytes, and otherwise alone, with more time spent than by Append. For what changes from commit to commit is
// little, beside what is there, and is what stores grow by.
func (c *Codec) AppendOver(dst []byte, kind object.Kind, id object.ID, plain []byte, baseID object.ID, base []byte, limit int) ([]byte, Head) {
	// What stayed in its place makes the smaller delta in a tenth of the time.
	rec, h, ok := c.AppendDelta(dst, kind, id, plain, baseID, base, limit)
	if !ok && Similar(plain, base) {
		rec, h, ok = c.AppendDict(dst, kind, id, plain, baseID, base, limit)
	}
	if ok {
		return rec, h
	}
	return appendAlone(c.small, dst, kind, id, plain)
}

func appendAlone(e *zstd.Encoder, dst []byte, kind object.Kind, id object.ID, plain []byte) ([]byte, Head) {
	start := len(dst)
	var room [HeadLen]byte
	dst = append(dst, room[:]...)
	h := Head{Kind: kind, Encoding: Zstd, PlainLen: len(plain), ID: id}
	dst = e.EncodeAll(plain, dst)
	if len(dst)-start-HeadLen >= len(plain)-len(plain)/16 {
		h.Encoding = Raw
		dst = append(dst[:start+HeadLen], plain...)
	}
	return finish(dst, start, &h), h
}

// finish fills in the head of the record that begins at start.
func finish(dst []byte, start int, h *Head) []byte {
	payload := dst[start+h.Len():]
	h.PayloadLen = len(payload)
	h.PayloadCRC = castagnoli(payload)
	h.put(dst[start:])
	return dst
}

// zstdLits is from how many bytes of runs and literals on compressing them is tried.
const zstdLits = 64

// AppendDelta appends the record of an object as a delta against base, if its payload then has at most limit bytes;
// otherwise it returns dst as it was, and false.
func (c *Codec) AppendDelta(dst []byte, kind object.Kind, id object.ID, plain []byte, baseID object.ID, base []byte,
	limit int,
) ([]byte, Head, bool) {
	s := c.scratch.Get().(*scratch)
	defer c.scratch.Put(s)
	// Literals shrink by compression, but not as much as whole objects do.
	var ok bool
	s.runs, s.lits, ok = diff(plain, base, min(2*limit, len(plain)/2), s.runs[:0], s.lits[:0])
	if !ok {
		return dst, Head{}, false
	}
	start := len(dst)
	var room [MaxHeadLen]byte
	dst = append(dst, room[:]...)
	dst = c.appendDelta(dst, s, base)
	if len(dst)-start-MaxHeadLen > limit {
		return dst[:start], Head{}, false
	}
	h := Head{Kind: kind, Encoding: Delta, PlainLen: len(plain), ID: id, Base: baseID}
	return finish(dst, start, &h), h, true
}

// appendDelta appends the smallest form of a diff: as it is, compressed, or compressed with the differences to the base's bytes
// in place of the bytes. These win where the same was done to much of the base, such as the bits that PostgreSQL sets in
// each row, and lose where one text took another's place.
func (c *Codec) appendDelta(dst []byte, s *scratch, base []byte) []byte {
	s.body = append(appendRuns(s.body[:0], s.runs), s.lits...)
	start := len(dst)
	dst = append(append(dst, 0), s.body...)
	if len(s.body) < zstdLits {
		return dst
	}
	for _, flags := range []byte{flagBody, flagBody | flagXOR} {
		if flags&flagXOR != 0 {
			xorLits(s.body[len(s.body)-len(s.lits):], s.runs, base)
		}
		s.try = binary.AppendUvarint(append(s.try[:0], flags), uint64(len(s.body)))
		if s.try = c.enc.EncodeAll(s.body, s.try); len(s.try) < len(dst)-start {
			dst = append(dst[:start], s.try...)
		}
	}
	return dst
}

// AppendDict appends the record of an object as a zstd frame with base as dictionary, if its payload then has at most
// limit bytes; otherwise it returns dst as it was, and false. It finds what moved, at thirty times the cost of AppendDelta.
func (c *Codec) AppendDict(dst []byte, kind object.Kind, id object.ID, plain []byte, baseID object.ID, base []byte,
	limit int,
) ([]byte, Head, bool) {
	e := <-c.dictEnc
	defer func() { c.dictEnc <- e }()
	if err := e.ResetWithOptions(nil, zstd.WithEncoderDictRaw(dictID, base)); err != nil || len(plain) == 0 {
		return dst, Head{}, false
	}
	start := len(dst)
	var room [MaxHeadLen]byte
	dst = e.EncodeAll(plain, append(dst, room[:]...))
	if len(dst)-start-MaxHeadLen > limit {
		return dst[:start], Head{}, false
	}
	h := Head{Kind: kind, Encoding: Dict, PlainLen: len(plain), ID: id, Base: baseID}
	return finish(dst, start, &h), h, true
}

// Decode returns the plain bytes of a record. base is the plain base object where the encoding has one. The result is
// the caller's, except that of a raw record, which is the record's payload itself. It has the record's plain length but
// has not been compared with its id.
func (c *Codec) Decode(r *Record, base []byte) ([]byte, error) {
	if r.Encoding == Delta {
		if err := checkBase(r, base); err != nil {
			return nil, err
		}
		base = append(make([]byte, 0, max(len(base), r.PlainLen)), base...)
	}
	return c.DecodeOver(r, base)
}

// checkBase refuses what is no base of any object before it is copied: an object is at most object.MaxSize long.
func checkBase(r *Record, base []byte) error {
	if len(base) > object.MaxSize {
		return errs.New(errs.Damaged, "record %s has a base of %d bytes", r.ID.Short(), len(base))
	}
	return nil
}

// DecodeOver is Decode for a base that the caller gives away: the result may be in its memory. That makes each delta of a
// chain cost what changed.
func (c *Codec) DecodeOver(r *Record, base []byte) ([]byte, error) {
	switch r.Encoding {
	case Raw:
		return r.Payload, nil
	case Zstd:
		return decodeAll(c.dec, r.Payload, r.PlainLen)
	case Delta:
		flags, body, err := c.deltaBody(r.Payload)
		if err != nil {
			return nil, err
		}
		runs, count, litLen, lits, err := splitDelta(body, r.PlainLen)
		if err != nil {
			return nil, err
		}
		if flags&flagZstd != 0 {
			if lits, err = decodeAll(c.dec, lits, litLen); err != nil {
				return nil, err
			}
		}
		return apply(r.PlainLen, base, runs, count, lits, flags&flagXOR != 0)
	case Dict:
		d := <-c.dictDec
		defer func() { c.dictDec <- d }()
		if err := d.ResetWithOptions(nil, zstd.WithDecoderDictRaw(dictID, base)); err != nil {
			return nil, err
		}
		return decodeAll(d, r.Payload, r.PlainLen)
	}
	return nil, errs.New(errs.Damaged, "record %s has unknown encoding %d", r.ID.Short(), r.Encoding)
}

// deltaBody returns a delta's flags and what is behind them, decompressed if it is compressed as a whole.
func (c *Codec) deltaBody(payload []byte) (flags byte, body []byte, err error) {
	if len(payload) == 0 {
		return 0, nil, errs.New(errs.Damaged, "delta: empty")
	}
	flags, body = payload[0], payload[1:]
	if flags&^(flagZstd|flagXOR|flagBody) != 0 || flags&flagZstd != 0 && flags&flagBody != 0 {
		return 0, nil, errs.New(errs.Damaged, "delta: unknown flags %#x", flags)
	}
	if flags&flagBody == 0 {
		return flags, body, nil
	}
	n, k := uvarint(body, MaxPayload)
	if k == 0 {
		return 0, nil, errs.New(errs.Damaged, "delta: bad length")
	}
	body, err = decodeAll(c.dec, body[k:], n)
	return flags, body, err
}

func decodeAll(d *zstd.Decoder, frame []byte, n int) ([]byte, error) {
	plain, err := d.DecodeAll(frame, make([]byte, 0, n))
	if err != nil {
		return nil, errs.New(errs.Damaged, "decompress: %w", err)
	}
	if len(plain) != n {
		return nil, errs.New(errs.Damaged, "decompress: %d bytes where %d are announced", len(plain), n)
	}
	return plain, nil
}
