package workcopy

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/errs"
)

// The journal of a working copy: a file of frames, each holding the records of one operation, so that an operation is
// replayed wholly or not at all. docs/format/workcopy.md has the bytes.
//
// A frame is written with one write(2) before the operation is answered: what the kernel has survives the server. The
// file is synced when fsync asks for it, and every few seconds.
const (
	journalMagic   = "dmjrnl\x00\x01" // the last byte is the version
	frameHeader    = 8                // length, CRC-32C
	maxFrame       = 64 << 20
	recordInode    = 1
	recordBase     = 2
	recordBind     = 3
	recordName     = 4
	recordBlocks   = 5
	recordGone     = 6
	recordCut      = 7
	recordAbort    = 8
	recordPrepare  = 9
	recordNextIno  = 10
	recordComplete = 11
	recordReset    = 12
	recordDone     = 13
	recordTotals   = 14
	recordSwitch   = 15
	recordAfter    = 16
	recordWithdraw = 17
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal appends frames. Append is called under Copy.mu; sync by anyone.
type journal struct {
	dir  string
	seq  uint64 // number of the file
	f    *os.File
	end  int64 // of the file, in bytes
	from int64 // lsn of the file's first byte: lsns grow over all files of this run

	buf []byte // the frame being made; cap is kept

	failed error // after a failed write nothing more is accepted: what is on disk is a prefix of what was done

	reserved int64 // bytes of the file that the filesystem has set aside

	syncMu   sync.Mutex
	old      *os.File     // the file before f while f does not stand alone yet; guarded by syncMu
	named    bool         // f's name is durable; guarded by syncMu
	synced   atomic.Int64 // lsn
	unsynced error        // of the first sync that failed; guarded by syncMu
}

func journalPath(dir string, seq uint64) string {
	return filepath.Join(dir, "journal", strconv.FormatUint(seq, 10))
}

func createJournal(dir string, seq uint64, lsn int64) (*journal, error) {
	f, err := os.OpenFile(journalPath(dir, seq), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(journalMagic); err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	j := &journal{dir: dir, seq: seq, f: f, end: int64(len(journalMagic)), from: lsn}
	j.synced.Store(lsn)
	return j, nil
}

// Room that is set aside for the journal before an operation is done in memory, so that it can be written afterwards.
// What gives room back may dip into the rest.
const (
	reserveStep = 1 << 20
	reserveMin  = 512 << 10
	reserveLast = 192 << 10
)

// reserve makes sure that a frame can be written even if the disk is full.
func (j *journal) reserve(frees bool) error {
	if j.f == nil { // replaying
		return nil
	}
	if j.failed != nil {
		return j.failed
	}
	if j.reserved-j.end >= reserveMin {
		return nil
	}
	err := j.setAside(reserveStep)
	if err != nil && frees && j.reserved-j.end >= reserveLast {
		return nil
	}
	return err
}

// reserveSome sets aside what there is, if the disk is full: perhaps enough for what gives room back.
func (j *journal) reserveSome() error {
	const least = 64 << 10
	err := j.setAside(reserveStep)
	for n := int64(reserveStep - least); err != nil && n >= least; n -= least {
		err = j.setAside(n)
	}
	return err
}

// setAside reserves n bytes behind the end of the file.
func (j *journal) setAside(n int64) error {
	err := unix.Fallocate(int(j.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, j.end, n)
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) {
		j.reserved = j.end + n
		return nil
	}
	return err
}

// giveUp closes the file and removes it, where it does not count yet.
func (j *journal) giveUp() error {
	return errors.Join(j.f.Close(), os.Remove(journalPath(j.dir, j.seq)))
}

// begin starts the frame of one operation.
func (j *journal) begin() { j.buf = append(j.buf[:0], make([]byte, frameHeader)...) }

// split ends the frame here if it is large, for records that need not be replayed together.
func (j *journal) split() error {
	if len(j.buf) < reserveLast/2 {
		return nil
	}
	if _, err := j.commit(); err != nil {
		return err
	}
	j.begin()
	return j.reserve(false)
}

// empty says whether the frame has no record.
func (j *journal) empty() bool { return len(j.buf) <= frameHeader }

// commit writes the frame and returns the lsn behind it. A frame that cannot be written is cut off again.
func (j *journal) commit() (int64, error) {
	if j.failed != nil {
		return 0, j.failed
	}
	if j.empty() || j.f == nil {
		return j.lsn(), nil
	}
	body := j.buf[frameHeader:]
	if len(body) > maxFrame {
		return 0, fmt.Errorf("write journal: a frame of %d bytes could not be read again", len(body))
	}
	binary.LittleEndian.PutUint32(j.buf, uint32(len(body)))
	binary.LittleEndian.PutUint32(j.buf[4:], crc32.Checksum(body, castagnoli))
	if _, err := j.f.WriteAt(j.buf, j.end); err != nil {
		if terr := j.f.Truncate(j.end); terr != nil {
			j.failed = fmt.Errorf("write journal: %w", err)
		}
		return 0, err
	}
	j.end += int64(len(j.buf))
	if cap(j.buf) > 1<<20 {
		j.buf = nil
	}
	return j.lsn(), nil
}

func (j *journal) lsn() int64 { return j.from + j.end }

// sync makes everything up to lsn durable; end is the lsn behind what has been written, read before. Callers that come
// while a sync is running share the next one. After a failed sync every later one fails too: the kernel may have dropped
// the pages that it could not write, and a second try would say that all is well.
func (j *journal) sync(lsn, end int64) error {
	if j.synced.Load() >= lsn {
		return nil
	}
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced.Load() >= lsn {
		return nil
	}
	if j.unsynced != nil {
		return j.unsynced
	}
	for _, f := range []*os.File{j.old, j.f} {
		if f == nil {
			continue
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			j.unsynced = fmt.Errorf("sync journal: %w", err)
			return j.unsynced
		}
	}
	if !j.named {
		if err := durable.SyncDir(filepath.Join(j.dir, "journal")); err != nil {
			return err
		}
		j.named = true
	}
	if end > j.synced.Load() {
		j.synced.Store(end)
	}
	return nil
}

// next goes on in a new file, which begins to count together with the one before it. The caller holds syncMu.
func (j *journal) next() error {
	n, err := createJournal(j.dir, j.seq+1, 0)
	if err != nil {
		return err
	}
	if err := n.reserve(false); err != nil {
		return errors.Join(err, n.giveUp())
	}
	if j.old != nil { // of a dump that failed: it counts until one succeeds, and must not be lost sight of unsynced
		if err := unix.Fdatasync(int(j.old.Fd())); err != nil {
			return errors.Join(err, n.giveUp())
		}
		j.old.Close()
	}
	end := j.end
	j.old, j.f, j.named = j.f, n.f, false
	j.from += j.end - n.end
	j.seq, j.end, j.reserved = n.seq, n.end, n.reserved
	// Both files are synced on their own: this one does not count where the one before it has lost its end.
	j.begin()
	j.buf = append(j.buf, recordAfter)
	j.uint(uint64(end))
	_, err = j.commit()
	return err
}

// alone says that the file holds everything and the one before it is not needed any more.
func (j *journal) alone() {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.old != nil {
		j.old.Close()
		j.old = nil
	}
}

// readJournal calls fn with the body of each whole frame of a journal file and returns the offset behind the last. What
// follows a torn frame was never answered, or never synced, and does not count. A file that was only just made is empty.
func readJournal(path string, fn func(body []byte) error) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n := len(journalMagic)
	if len(data) < n {
		return 0, nil
	}
	if string(data[:n-1]) != journalMagic[:n-1] {
		return 0, errs.New(errs.Damaged, "%s is not a journal", path)
	}
	if data[n-1] > journalMagic[n-1] {
		return 0, errs.WithHint(errs.New(errs.Damaged, "%s has journal version %d, newer than this dm", path, data[n-1]),
			"install a newer dm")
	}
	off := n
	for len(data)-off >= frameHeader {
		size := int(binary.LittleEndian.Uint32(data[off:]))
		sum := binary.LittleEndian.Uint32(data[off+4:])
		if size == 0 || size > maxFrame || size > len(data)-off-frameHeader {
			break
		}
		body := data[off+frameHeader : off+frameHeader+size]
		if crc32.Checksum(body, castagnoli) != sum {
			break
		}
		if err := fn(body); err != nil {
			return int64(off), err
		}
		off += frameHeader + size
	}
	return int64(off), nil
}

// head is the small file that says which journal and which generation count.
type head struct {
	Version    int    `json:"version"`
	Base       string `json:"base"` // commit id, "" for none
	Generation uint32 `json:"generation"`
	Journal    uint64 `json:"journal"` // the first file to replay; later ones follow
	Clean      bool   `json:"clean"`   // closed in order: everything is synced
	Era        string `json:"era"`     // of the page cache, when it was last opened
	NextIno    uint64 `json:"next_ino"`
}

const headVersion = 1

func (c *Copy) writeHead(h head) error {
	data, err := json.MarshalIndent(h, "", "\t")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(c.path, "head"), data, 0o600)
}

// removeJournals removes journal files before seq: head no longer names them.
func removeJournals(dir string, seq uint64) error {
	names, err := os.ReadDir(filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	var all error
	for _, n := range names {
		if v, err := strconv.ParseUint(n.Name(), 10, 64); err == nil && v < seq {
			all = errors.Join(all, os.Remove(filepath.Join(dir, "journal", n.Name())))
		}
	}
	return all
}
