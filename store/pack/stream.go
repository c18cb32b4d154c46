package pack

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"dm/internal/errs"
)

// Writer writes a pack as a stream. It is not safe for concurrent use. After an error it stays broken.
type Writer struct {
	w     io.Writer
	buf   []byte
	count uint64
	size  uint64
	err   error
}

// NewWriter returns a writer to w and writes the pack's header with the first record. w is best buffered.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, buf: AppendHeader(nil)} }

// Write writes a record. It does not keep the payload.
func (w *Writer) Write(r *Record) error {
	w.buf = r.Append(w.buf)
	w.count++
	return w.flush()
}

// Size returns the bytes written so far.
func (w *Writer) Size() uint64 { return w.size }

// Close writes the end record, without which a reader takes the pack for cut short. It does not close what is written to.
func (w *Writer) Close() error {
	w.buf = AppendEnd(w.buf, w.count, w.size+uint64(len(w.buf)))
	return w.flush()
}

func (w *Writer) flush() error {
	if w.err == nil {
		_, w.err = w.w.Write(w.buf)
		w.size += uint64(len(w.buf))
	}
	w.buf = w.buf[:0]
	return w.err
}

// Reader reads a pack as a stream, one record at a time, in memory bounded by MaxRecord. It is not safe for concurrent
// use.
type Reader struct {
	r       *bufio.Reader
	payload []byte
	count   uint64
	pos     uint64
	err     error
}

// NewReader returns a reader of the pack that r yields.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Next returns the next record, whose payload is valid until the call after. Behind the end record it returns io.EOF,
// in a damaged pack an error of kind Damaged, and the error of the stream if that fails. After an error it stays failed.
func (r *Reader) Next() (*Record, error) {
	if r.err != nil {
		return nil, r.err
	}
	rec, err := r.next()
	if err != nil {
		r.err = err
		return nil, err
	}
	return rec, nil
}

func (r *Reader) next() (*Record, error) {
	if r.pos == 0 {
		head, err := r.r.Peek(HeaderLen)
		if err != nil {
			return nil, cutShort(err)
		}
		if err := CheckHeader(head); err != nil {
			return nil, err
		}
		r.skip(HeaderLen)
	}
	b, err := r.r.Peek(MaxHeadLen)
	if len(b) < HeadLen {
		return nil, cutShort(err)
	}
	h, err := ParseHead(b)
	if err != nil {
		return nil, err
	}
	at := r.pos
	r.skip(h.Len())
	if cap(r.payload) < h.PayloadLen {
		r.payload = make([]byte, h.PayloadLen)
	}
	rec := &Record{h, r.payload[:h.PayloadLen]}
	if _, err := io.ReadFull(r.r, rec.Payload); err != nil {
		return nil, cutShort(err)
	}
	r.pos += uint64(h.PayloadLen)
	if err := rec.checkPayload(); err != nil {
		return nil, err
	}
	if h.end {
		return nil, r.atEnd(rec, at)
	}
	r.count++
	return rec, nil
}

// atEnd checks the end record and that nothing follows it.
func (r *Reader) atEnd(rec *Record, at uint64) error {
	if err := checkEnd(rec.Payload, r.count, at); err != nil {
		return err
	}
	switch _, err := r.r.ReadByte(); {
	case err == nil:
		return errs.New(errs.Damaged, "pack: bytes after the end")
	case !errors.Is(err, io.EOF):
		return err
	}
	return io.EOF
}

func checkEnd(payload []byte, count, at uint64) error {
	if c := binary.LittleEndian.Uint64(payload); c != count {
		return errs.New(errs.Damaged, "pack: %d records where the end says %d", count, c)
	}
	if o := binary.LittleEndian.Uint64(payload[8:]); o != at {
		return errs.New(errs.Damaged, "pack: the end is at %d and says %d", at, o)
	}
	return nil
}

func (r *Reader) skip(n int) {
	r.r.Discard(n) // was peeked at, so it cannot fail
	r.pos += uint64(n)
}

// cutShort turns the end of the stream inside of a pack into damage. Other errors stay what they are.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Damaged, "pack is cut short")
	}
	return err
}
