package store

import (
	"container/list"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/store/pack"
)

// packFile is an open pack.
type packFile struct {
	num uint64
	f   *os.File

	// Of packSet, under its mutex:
	users int           // readers and writers that have it in hand
	idle  *list.Element // in packSet.unused while users is 0
	gone  bool          // the file is removed; close it when the last user is done

	// Of the batch that has leased it, or of packSet.grow while none has:
	known  packInfo // as the index has it
	size   int64    // where the next record goes
	count  uint64   // records up to there
	ended  bool     // the end record is written
	fresh  bool     // the file's name is not known to be on disk yet
	failed bool     // a sync failed, or it could not be cut back: it does not grow any more
}

// packSet is all packs of a store: open files, and who may append to which. It is safe for concurrent use.
type packSet struct {
	dir     string
	maxOpen int

	mu     sync.Mutex
	next   uint64 // number of the next new pack
	open   map[uint64]*packFile
	unused *list.List      // open files with no user, the least recently used in front
	grow   []*packFile     // unsealed packs that nobody has leased; each counts as a user
	stuck  map[uint64]bool // unsealed packs that do not grow: damaged, or after a failed sync
}

// openFiles bounds the files kept open for reading beyond those in use.
const openFiles = 128

func newPackSet(dir string) *packSet {
	return &packSet{
		dir: dir, maxOpen: openFiles, next: 1, open: map[uint64]*packFile{}, unused: list.New(),
		stuck: map[uint64]bool{},
	}
}

func packName(num uint64) string { return fmt.Sprintf("%016x.pack", num) }

// parsePackName is the inverse of packName; ok is false for other files' names.
func parsePackName(name string) (num uint64, ok bool) {
	hex, ok := strings.CutSuffix(name, ".pack")
	if !ok || len(hex) != 16 {
		return 0, false
	}
	num, err := strconv.ParseUint(hex, 16, 64)
	return num, err == nil && packName(num) == name
}

func (p *packSet) path(num uint64) string { return filepath.Join(p.dir, packName(num)) }

// acquire opens a pack for reading, or takes the one that is open. The caller releases it.
func (p *packSet) acquire(num uint64) (*packFile, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f, ok := p.open[num]; ok {
		p.use(f)
		return f, nil
	}
	file, err := os.Open(p.path(num))
	if err != nil {
		return nil, err
	}
	f := &packFile{num: num, f: file, users: 1}
	p.open[num] = f
	return f, nil
}

func (p *packSet) use(f *packFile) {
	if f.users++; f.idle != nil {
		p.unused.Remove(f.idle)
		f.idle = nil
	}
}

// release gives back what acquire returned.
func (p *packSet) release(f *packFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.users--; f.users > 0 {
		return
	}
	if f.gone {
		f.f.Close()
		return
	}
	f.idle = p.unused.PushBack(f)
	for p.unused.Len() > p.maxOpen {
		old := p.unused.Remove(p.unused.Front()).(*packFile)
		delete(p.open, old.num)
		old.f.Close()
	}
}

// adopt makes an unsealed pack of the index known as one to append to, and cuts off what was never committed.
func (p *packSet) adopt(num uint64, info packInfo) (err error) {
	defer func() {
		if err != nil {
			p.mu.Lock()
			p.stuck[num] = true
			p.mu.Unlock()
		}
	}()
	f, err := os.OpenFile(p.path(num), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > info.size {
		err = f.Truncate(info.size)
	}
	if err != nil || st.Size() < info.size {
		f.Close()
		if err == nil {
			err = errs.New(errs.Damaged, "pack %s has %d bytes, the index knows of %d", packName(num), st.Size(), info.size)
		}
		return err
	}
	pf := &packFile{num: num, f: f, users: 1, known: info, size: info.size, count: info.count}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[num] = pf
	p.grow = append(p.grow, pf)
	return nil
}

// lease hands out a pack to append to, an unsealed or a new one. Nobody else appends to it until giveBack or seal.
func (p *packSet) lease() (*packFile, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.grow); n > 0 {
		f := p.grow[n-1]
		p.grow = p.grow[:n-1]
		return f, nil
	}
	num := p.next
	p.next++
	file, err := os.OpenFile(p.path(num), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := file.Write(pack.AppendHeader(nil)); err != nil {
		file.Close()
		os.Remove(p.path(num))
		return nil, err
	}
	f := &packFile{num: num, f: file, users: 1, size: pack.HeaderLen, fresh: true}
	p.open[num] = f
	return f, nil
}

// take leases an unsealed pack that nobody has leased. ok is false where there is no such pack.
func (p *packSet) take(num uint64) (f *packFile, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.grow, func(f *packFile) bool { return f.num == num })
	if i < 0 {
		return nil, false
	}
	f = p.grow[i]
	p.grow = slices.Delete(p.grow, i, i+1)
	return f, true
}

// isStuck says whether a pack does not grow although it is not sealed.
func (p *packSet) isStuck(num uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stuck[num]
}

// info returns what the index is to know of a pack when all that was appended to it is committed.
func (f *packFile) info() packInfo { return packInfo{f.size, f.count, f.ended} }

// giveBack ends a lease. What the index does not know of is cut off; a pack of which it knows nothing goes. Where it is
// not certain what the index knows, the file stays as it is until the store is opened again.
func (p *packSet) giveBack(f *packFile, certain bool) {
	if f.size > f.known.size && f.known.size > 0 && certain {
		if err := f.f.Truncate(f.known.size); err != nil {
			f.failed = true
		}
	}
	f.size, f.count, f.ended = f.known.size, f.known.count, f.known.sealed
	switch {
	case !certain:
		p.release(f)
	case f.known.size == 0:
		p.remove(f.num)
		p.release(f)
	case f.failed:
		p.mu.Lock()
		p.stuck[f.num] = true
		p.mu.Unlock()
		p.release(f)
	case f.known.sealed:
		p.release(f)
	default:
		p.mu.Lock()
		p.grow = append(p.grow, f)
		p.mu.Unlock()
	}
}

// remove deletes a pack's file. Who has it open reads on.
func (p *packSet) remove(num uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f, ok := p.open[num]; ok {
		delete(p.open, num)
		f.gone = true
		if f.idle != nil {
			p.unused.Remove(f.idle)
			f.idle = nil
			f.f.Close()
		}
	}
	return os.Remove(p.path(num))
}

// sync makes what was appended to f durable.
func (p *packSet) sync(f *packFile) error {
	if err := unix.Fdatasync(int(f.f.Fd())); err != nil {
		f.failed = true
		return fmt.Errorf("sync pack %s: %w", packName(f.num), err)
	}
	if f.fresh {
		if err := durable.SyncDir(p.dir); err != nil {
			f.failed = true
			return fmt.Errorf("sync pack %s: %w", packName(f.num), err)
		}
		f.fresh = false
	}
	return nil
}

func (p *packSet) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.open {
		f.f.Close()
	}
}
