package store

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/object"
)

// The journal keeps refs and metadata a second time, beside the index, as a log of the transactions that changed them. It
// begins with a snapshot of everything and is replaced by a new snapshot when it has become much longer than one. It is
// read when the store is opened and used when the index is lost or damaged. The format is in docs/format/store.md.

const (
	journalName    = "journal"
	journalMagic   = "\xaddmjrnl\n"
	journalVersion = 1
	journalHeader  = 16
	journalSlack   = 256 << 10 // bytes that may be added to a snapshot before a new one is written
)

// Limits of a key and a value, in bytes.
const (
	maxKey   = 1 << 10
	maxValue = 16 << 20
)

// The operations of a change.
const (
	opRef  byte = 'r'
	opMeta byte = 'm'
)

// change is one ref or key that got a new value; nil: that was removed.
type change struct {
	op    byte
	key   string
	value []byte
}

// journal is the open journal. It is used by one transaction at a time.
type journal struct {
	path     string
	f        *os.File
	size     int64  // bytes that count
	before   int64  // size before the last append
	snapshot int64  // size after the last snapshot
	lastSeq  uint64 // of the last record
}

// state is what a journal says: all refs and metadata after its last whole record.
type state struct {
	seq  uint64
	prev uint64 // seq of the record before the last; 0: the last is a snapshot
	at   int64  // where the last record begins
	size int64  // where the last whole record ends
	refs map[string][]byte
	meta map[string][]byte
	torn bool // bytes follow that are no record
}

// readJournal reads the journal in dir up to the first record that is not whole. A missing journal is NotFound, one whose
// header is not right Damaged.
func readJournal(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		return nil, err
	}
	if err := checkJournalHeader(b); err != nil {
		return nil, err
	}
	st := &state{at: journalHeader, size: journalHeader}
	for rest := b[journalHeader:]; ; {
		body, n := nextJournalRecord(rest)
		if n == 0 || st.apply(body) != nil {
			st.torn = len(rest) > 0
			break
		}
		st.at = st.size
		st.size += int64(n)
		rest = rest[n:]
	}
	if st.refs == nil {
		return nil, errs.New(errs.Damaged, "journal: there is no snapshot in it")
	}
	return st, nil
}

func checkJournalHeader(b []byte) error {
	if len(b) < journalHeader || string(b[:8]) != journalMagic ||
		crc32c(b[:12]) != binary.LittleEndian.Uint32(b[12:]) {
		return errs.New(errs.Damaged, "journal: the header is damaged")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != journalVersion {
		return errs.WithHint(errs.New(errs.Usage, "journal has version %d; this dm knows %d", v, journalVersion),
			"install a newer dm")
	}
	return nil
}

func crc32c(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func newJournalHeader() []byte {
	b := binary.LittleEndian.AppendUint32([]byte(journalMagic), journalVersion)
	return binary.LittleEndian.AppendUint32(b, crc32c(b))
}

// appendJournalRecord appends a record: length and checksum of the body, then the body.
func appendJournalRecord(b []byte, kind byte, seq uint64, changes []change) []byte {
	start := len(b)
	b = append(b, make([]byte, 8)...)
	b = append(b, kind)
	b = binary.AppendUvarint(b, seq)
	b = binary.AppendUvarint(b, uint64(len(changes)))
	for _, c := range changes {
		op := c.op
		if c.value == nil {
			op |= removed
		}
		b = append(b, op)
		b = binary.AppendUvarint(b, uint64(len(c.key)))
		b = append(b, c.key...)
		if c.value != nil {
			b = binary.AppendUvarint(b, uint64(len(c.value)))
			b = append(b, c.value...)
		}
	}
	body := b[start+8:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32c(body))
	return b
}

// Kinds of journal records, and the bit that marks a removal.
const (
	recSnapshot byte = 's'
	recTx       byte = 't'
	removed     byte = 0x80
)

// nextJournalRecord returns the body of the record at the front of b and the record's length, 0 if there is no whole one.
func nextJournalRecord(b []byte) (body []byte, n int) {
	if len(b) < 8 {
		return nil, 0
	}
	n = int(binary.LittleEndian.Uint32(b))
	if n > len(b)-8 || crc32c(b[8:8+n]) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0
	}
	return b[8 : 8+n], 8 + n
}

var errJournal = errors.New("journal record is malformed")

// apply adds a record to the state. A malformed one changes nothing.
func (st *state) apply(body []byte) error {
	if len(body) == 0 || body[0] != recSnapshot && (body[0] != recTx || st.refs == nil) {
		return errJournal
	}
	snap := body[0] == recSnapshot
	seq, k := binary.Uvarint(body[1:])
	if k <= 0 || !snap && seq != st.seq+1 {
		return errJournal
	}
	b := body[1+k:]
	count, k := binary.Uvarint(b)
	if k <= 0 || count > uint64(len(b)) {
		return errJournal
	}
	b = b[k:]
	changes := make([]change, 0, count)
	for range count {
		c, n := nextChange(b)
		if n == 0 {
			return errJournal
		}
		changes = append(changes, c)
		b = b[n:]
	}
	if len(b) != 0 {
		return errJournal
	}
	st.prev = st.seq
	if snap {
		st.prev, st.refs, st.meta = 0, map[string][]byte{}, map[string][]byte{}
	}
	st.seq = seq
	for _, c := range changes {
		m := st.refs
		if c.op == opMeta {
			m = st.meta
		}
		if c.value == nil {
			delete(m, c.key)
		} else {
			m[c.key] = c.value
		}
	}
	return nil
}

func nextChange(b []byte) (c change, n int) {
	if len(b) == 0 {
		return c, 0
	}
	c.op = b[0] &^ removed
	if c.op != opRef && c.op != opMeta {
		return c, 0
	}
	gone := b[0]&removed != 0
	n = 1
	field := func() []byte {
		u, k := binary.Uvarint(b[n:])
		if k <= 0 || u > uint64(len(b)-n-k) {
			n = -1
			return nil
		}
		f := b[n+k : n+k+int(u)]
		n += k + int(u)
		return f
	}
	c.key = string(field())
	if n > 0 && !gone {
		c.value = append([]byte{}, field()...)
	}
	if n < 0 || c.key == "" || c.op == opRef && !gone && len(c.value) != object.IDSize {
		return c, 0
	}
	return c, n
}

// buckets returns what the journal holds, by the buckets of the index.
func (st *state) buckets() map[string]map[string][]byte {
	return map[string]map[string][]byte{bucketRefs: st.refs, bucketMeta: st.meta}
}

// equals says whether the index has the same refs and metadata.
func (st *state) equals(b *bbolt.Tx) bool {
	for bucket, values := range st.buckets() {
		n := 0
		err := b.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
			n++
			value, err := unseal(string(k), v)
			if want, ok := values[string(k)]; err != nil || !ok || string(want) != string(value) {
				return errJournal
			}
			return nil
		})
		if err != nil || n != len(values) {
			return false
		}
	}
	return true
}

// restore replaces the refs and metadata of the index.
func (st *state) restore(b *bbolt.Tx) error {
	for bucket, values := range st.buckets() {
		if err := b.DeleteBucket([]byte(bucket)); err != nil {
			return err
		}
		fresh, err := b.CreateBucket([]byte(bucket))
		if err != nil {
			return err
		}
		for key, value := range values {
			if err := fresh.Put([]byte(key), seal(key, value)); err != nil {
				return err
			}
		}
	}
	return nil
}

// openJournal opens the journal to append behind a state that was read from it.
func openJournal(dir string, st *state) (*journal, error) {
	path := filepath.Join(dir, journalName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, f: f, size: st.size, before: st.size, snapshot: st.size, lastSeq: st.seq}
	if st.torn {
		if err := j.cut(st.size); err != nil {
			f.Close()
			return nil, err
		}
	}
	return j, nil
}

// newJournal replaces the journal in dir by a snapshot.
func newJournal(dir string, seq uint64, all []change) (*journal, error) {
	path := filepath.Join(dir, journalName)
	b := appendJournalRecord(newJournalHeader(), recSnapshot, seq, all)
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	n := int64(len(b))
	return &journal{path: path, f: f, size: n, before: n, snapshot: n, lastSeq: seq}, nil
}

// append adds a transaction and syncs it.
func (j *journal) append(seq uint64, changes []change) error {
	b := appendJournalRecord(nil, recTx, seq, changes)
	j.before = j.size
	if _, err := j.f.WriteAt(b, j.size); err != nil {
		j.cut(j.size) // what is left of it has no right checksum, or is cut off when the store is opened
		return err
	}
	if err := unix.Fdatasync(int(j.f.Fd())); err != nil {
		j.cut(j.size)
		return err
	}
	j.size += int64(len(b))
	j.lastSeq = seq
	return nil
}

// undo takes back the last append, whose transaction was not committed.
func (j *journal) undo() error {
	j.lastSeq--
	j.size = j.before
	return j.cut(j.before)
}

func (j *journal) cut(size int64) error {
	if err := j.f.Truncate(size); err != nil {
		return err
	}
	return unix.Fdatasync(int(j.f.Fd()))
}

// committed writes a new snapshot if the journal has grown too long. A failure is no harm: the old one goes on, unless it
// cannot be told which is there.
func (j *journal) committed(s *Store) {
	if j.size-j.snapshot < journalSlack+j.snapshot {
		return
	}
	var fresh *journal
	err := s.view(func(b *bbolt.Tx) error {
		all, err := allChanges(b)
		if err == nil {
			fresh, err = newJournal(s.dir, indexSeq(b), all)
		}
		return err
	})
	if err != nil {
		j.snapshot = j.size // try again later
		if f, err := os.OpenFile(j.path, os.O_RDWR, 0); err == nil {
			j.f.Close()
			j.f = f
			if st, err := readJournal(s.dir); err == nil {
				j.size, j.before = st.size, st.size
			}
		}
		return
	}
	j.f.Close()
	*j = *fresh
}

// allChanges returns all refs and metadata of the index, as changes that make them from nothing.
func allChanges(b *bbolt.Tx) (all []change, err error) {
	tx := &Tx{b: b}
	for name, id := range tx.Refs("") {
		all = append(all, change{opRef, name, slices.Clone(id[:])})
	}
	for key, value := range tx.Metas("") {
		all = append(all, change{opMeta, key, value})
	}
	return all, tx.err
}

func (j *journal) close() { j.f.Close() }

// missing says whether err means that there is no journal that could be read.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) || errs.KindOf(err) == errs.Damaged
}
