package pack

import (
	"bytes"
	"io"

	"dm/internal/errs"
)

// Found is what Scan met in a pack file: a record, damage, or a record with damage.
type Found struct {
	Off    int64   // where it begins, in bytes
	Len    int64   // how long it is, in bytes
	Record *Record // a record with a whole head, valid until fn returns; nil where there is none
	Err    error   // what is wrong here, of kind Damaged; nil: the record is whole
}

// End says how a scanned pack ended.
type End struct {
	Size    int64  // bytes up to and with the last whole record, the end record included
	Records uint64 // whole ones
	Sealed  bool   // an end record that fits stands at the end of the file
}

// Scan reads a pack file of the given size from its front and calls fn for each record and each damaged stretch, in order.
// Where a record should be and is none, it searches for the next one with a whole head. Scan stops at fn's first error and
// returns it. Its memory is bounded by MaxRecord.
func Scan(r io.ReaderAt, size int64, fn func(Found) error) (End, error) {
	s := &scanner{r: r, size: size, fn: fn}
	err := s.run()
	return s.end, err
}

// searchStep is how much is read at a time, in bytes: at least MaxHeadLen.
const searchStep = 1 << 20

type scanner struct {
	r    io.ReaderAt
	size int64
	fn   func(Found) error
	end  End
	buf  []byte // what was read at bufOff
	off  int64
}

// window returns at least n bytes at pos, or as many as there are. The bytes are valid until the next call.
func (s *scanner) window(pos int64, n int) ([]byte, error) {
	if pos >= s.off && pos+int64(n) <= s.off+int64(len(s.buf)) {
		return s.buf[pos-s.off:], nil
	}
	want := max(n, searchStep)
	if rest := s.size - pos; int64(want) > rest {
		want = int(max(rest, 0))
	}
	if cap(s.buf) < want {
		s.buf = make([]byte, want)
	}
	s.buf = s.buf[:want]
	s.off = pos
	got, err := s.r.ReadAt(s.buf, pos)
	s.buf = s.buf[:got]
	if got == want {
		err = nil
	}
	return s.buf, err
}

func (s *scanner) run() error {
	b, _ := s.window(0, HeaderLen)
	pos := int64(HeaderLen)
	if err := CheckHeader(b); err != nil {
		pos = min(pos, s.size)
		if err := s.fn(Found{Off: 0, Len: pos, Err: err}); err != nil {
			return err
		}
	} else {
		s.end.Size = HeaderLen
	}
	for pos < s.size {
		n, err := s.record(pos)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		pos += n
	}
	return nil
}

// record handles what is at pos and returns its length, 0 where the pack has ended.
func (s *scanner) record(pos int64) (int64, error) {
	b, rerr := s.window(pos, MaxHeadLen)
	h, err := ParseHead(b)
	if err == nil && pos+int64(h.RecordLen()) > s.size {
		err = errs.New(errs.Damaged, "record %s is cut short", h.ID.Short())
	}
	if err != nil {
		if rerr != nil {
			err = errs.New(errs.Damaged, "%w; %v", rerr, err)
		}
		next := s.search(pos + 1)
		return next - pos, s.fn(Found{Off: pos, Len: next - pos, Err: err})
	}
	n := int64(h.RecordLen())
	b, rerr = s.window(pos, h.RecordLen())
	if int64(len(b)) < n {
		return n, s.fn(Found{Off: pos, Len: n, Err: errs.New(errs.Damaged, "read record %s: %w", h.ID.Short(), rerr)})
	}
	rec := Record{h, b[h.Len():n]}
	err = rec.checkPayload()
	if h.end {
		return s.atEnd(pos, &rec, err)
	}
	if err == nil {
		s.end.Size = pos + n
		s.end.Records++
	}
	return n, s.fn(Found{Off: pos, Len: n, Record: &rec, Err: err})
}

func (s *scanner) atEnd(pos int64, rec *Record, err error) (int64, error) {
	n := int64(rec.RecordLen())
	if err == nil {
		err = checkEnd(rec.Payload, s.end.Records, uint64(pos))
	}
	if err == nil && pos+n != s.size {
		err = errs.New(errs.Damaged, "pack: %d bytes after the end", s.size-pos-n)
	}
	if err != nil {
		return n, s.fn(Found{Off: pos, Len: n, Err: err})
	}
	s.end.Size, s.end.Sealed = pos+n, true
	return 0, nil
}

// search returns where the next record with a whole head begins, at pos or behind, or the end of the file.
func (s *scanner) search(pos int64) int64 {
	for pos < s.size {
		b, err := s.window(pos, MaxHeadLen)
		if err != nil && len(b) < HeadLen {
			// A stretch that the disk does not give back is passed over in blocks.
			pos = (pos + 4096) &^ 4095
			continue
		}
		i := bytes.Index(b, []byte(recordMagic))
		if i < 0 {
			pos += int64(max(len(b)-len(recordMagic)+1, 1))
			continue
		}
		pos += int64(i)
		if b, _ = s.window(pos, MaxHeadLen); len(b) >= HeadLen {
			if _, err := ParseHead(b); err == nil {
				return pos
			}
		}
		pos++
	}
	return s.size
}
