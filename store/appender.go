package store

import (
	"sync"

	"golang.org/x/sys/unix"

	"dm/store/pack"
)

// writeBack is how many bytes are written before the kernel is asked to begin bringing them to disk, so that the sync at
// the end does not have to wait for all.
const writeBack = 8 << 20

// appender writes records to packs that it has leased, full ones being sealed. It is safe for concurrent use; sync and
// close come when all appends are done.
type appender struct {
	s       *Store
	reserve bool // leaves Options.MinFree free on the disk

	mu    sync.Mutex
	packs []*packFile // the last one is being appended to, unless it has ended
	dirty int64       // bytes since writing them back was last asked for
}

// append writes a record and returns where it is.
func (a *appender) append(rec []byte) (num uint64, off int64, err error) {
	f, off, flush, err := a.place(int64(len(rec)))
	if err != nil {
		return 0, 0, err
	}
	if err := a.s.fail("WriteRecord"); err != nil {
		return 0, 0, err
	}
	if _, err := f.f.WriteAt(rec, off); err != nil {
		return 0, 0, err
	}
	if flush {
		if err := a.room(); err != nil {
			return 0, 0, err
		}
		// Only a hint: what fails here fails again in the sync.
		unix.SyncFileRange(int(f.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return f.num, off, nil
}

// room says whether more may be written.
func (a *appender) room() error {
	if !a.reserve {
		return nil
	}
	return a.s.reserve()
}

// place finds room for n bytes: at the end of the pack at hand, or of another if that is full. flush says that it is time
// to write back.
func (a *appender) place(n int64) (f *packFile, off int64, flush bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := len(a.packs); k > 0 && !a.packs[k-1].ended {
		f = a.packs[k-1]
	}
	if f != nil && f.size+n+pack.EndLen > a.s.opts.PackBytes && f.count > 0 {
		end := pack.AppendEnd(nil, f.count, uint64(f.size))
		if _, err := f.f.WriteAt(end, f.size); err != nil {
			return nil, 0, false, err
		}
		f.size += int64(len(end))
		f.ended = true
		f = nil
	}
	if f == nil {
		if f, err = a.s.packs.lease(); err != nil {
			return nil, 0, false, err
		}
		a.packs = append(a.packs, f)
	}
	off = f.size
	f.size += n
	f.count++
	if a.dirty += n; a.dirty >= writeBack {
		flush, a.dirty = true, 0
	}
	return f, off, flush, nil
}

// sync makes all that was appended durable. In the order of the package comment it comes before enter.
func (a *appender) sync() error {
	if err := a.s.fail("PackBeforeIndex"); err != nil {
		return err
	}
	for _, f := range a.packs {
		if err := a.s.packs.sync(f); err != nil {
			return err
		}
	}
	return nil
}

// enter writes into the index what there is of the packs.
func (a *appender) enter(tx *Tx) error {
	bucket := tx.b.Bucket([]byte(bucketPacks))
	for _, f := range a.packs {
		if err := bucket.Put(packKey(f.num), f.info().encode()); err != nil {
			return err
		}
	}
	return nil
}

// close ends the leases. committed says that the transaction of enter was; otherwise what was appended is cut off.
func (a *appender) close(committed bool) {
	certain := a.s.broken.Load() == nil
	for _, f := range a.packs {
		if committed {
			f.known = f.info()
		}
		a.s.packs.giveBack(f, certain)
	}
	a.packs = nil
}
