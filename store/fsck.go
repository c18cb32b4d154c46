package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// FsckOptions tune a check. The zero value checks everything and changes nothing.
type FsckOptions struct {
	// Quick leaves out reading chunks and the bytes that nothing needs: index, packs' sizes, trees and commits only.
	Quick bool
	// Repair takes damaged objects out of the index, so that they can be stored again: by a pull, or by a commit of a file
	// that still has the content. Packs with damage in them are written anew without it, and kept in quarantine.
	Repair bool
	// Progress is told how far the check is; total may be 0, unknown. nil: nobody is.
	Progress func(phase string, done, total int64)
}

// Problem is one thing that is wrong with a store.
type Problem struct {
	What   string    `json:"what"`             // one line
	Pack   string    `json:"pack,omitempty"`   // file name
	Offset int64     `json:"offset,omitempty"` // in that file, in bytes
	Object object.ID `json:"-"`                // zero where no object is known to be concerned
	Kind   string    `json:"kind,omitempty"`   // of the object
	ID     string    `json:"id,omitempty"`     // of the object, in hex
	// Missing says that the object is not there at all: something needs it and the index does not know it.
	Missing bool `json:"missing,omitempty"`
}

// Affected is a file, directory or commit that cannot be read in full because of a problem.
type Affected struct {
	Ref    string `json:"ref"`
	Commit string `json:"commit"` // id, in hex
	Path   string `json:"path"`   // in the commit; empty: the commit itself
	Object string `json:"object"` // id of what is damaged or missing, in hex
}

// Report is what a check found.
type Report struct {
	Packs      int        `json:"packs"`
	Objects    int        `json:"objects"`   // in the index
	Reachable  int        `json:"reachable"` // from refs
	Bytes      int64      `json:"bytes"`     // of packs
	Problems   []Problem  `json:"problems"`
	Affected   []Affected `json:"affected"`  // at most maxAffected of them
	Truncated  bool       `json:"truncated"` // there are more affected, or more problems
	PutAside   int        `json:"put_aside"` // objects taken out of the index by a repair
	Recovered  int        `json:"recovered"` // objects of which a repair found a whole copy
	unreadable map[object.ID]struct{}
}

// Limits on what is listed in a report.
const (
	maxProblems = 10000
	maxAffected = 1000
)

// OK says whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

func (r *Report) add(p Problem) {
	if !p.Object.IsZero() {
		if _, ok := r.unreadable[p.Object]; ok {
			return
		}
		r.unreadable[p.Object] = struct{}{}
		p.ID = p.Object.String()
	}
	if len(r.Problems) >= maxProblems {
		r.Truncated = true
		return
	}
	r.Problems = append(r.Problems, p)
}

// Fsck checks the store: index against packs and journal, every object against its id, and that everything refs need is
// there. It runs beside everything else but GC, which waits. What is wrong is in the report; the error is about the check
// itself.
func (s *Store) Fsck(ctx context.Context, opts FsckOptions) (*Report, error) {
	if opts.Progress == nil {
		opts.Progress = func(string, int64, int64) {}
	}
	s.collect.Lock()
	defer s.collect.Unlock()
	c := &check{s: s, opts: opts, report: &Report{unreadable: map[object.ID]struct{}{}}}
	for _, step := range []func(context.Context) error{c.indexFile, c.layout, c.packs, c.values, c.reach, c.affected, c.repair} {
		if err := step(ctx); err != nil {
			return c.report, errs.New(errs.KindOf(err), "check store: %w", err)
		}
	}
	return c.report, nil
}

// check is one run of Fsck.
type check struct {
	s      *Store
	opts   FsckOptions
	report *Report
	known  map[uint64]usage // packs as the index has them
	done   int64            // bytes of packs
	total  int64
	tips   []tip
	pruned map[object.ID]string // commits whose content need not be there
	// partial holds commits of whose content much may be missing.
	partial map[object.ID]struct{}
	// restore holds refs and metadata where those of the index are damaged.
	restore *state
}

type tip struct {
	ref string
	id  object.ID
}

// indexFile checks the structure of the bbolt file, which nobody changes meanwhile.
func (c *check) indexFile(context.Context) error {
	c.s.txMu.Lock()
	defer c.s.txMu.Unlock()
	if err := checkBolt(filepath.Join(c.s.dir, indexName)); err != nil {
		c.report.add(Problem{What: fmt.Sprintf("the index file is damaged: %v; a restart makes it again from the packs", err)})
	}
	return nil
}

// layout compares the packs that the index knows with the files that there are. It takes entries that cannot be decoded
// for damage of the index.
func (c *check) layout(ctx context.Context) error {
	c.known = map[uint64]usage{}
	err := c.s.view(func(b *bbolt.Tx) error {
		err := b.Bucket([]byte(bucketPacks)).ForEach(func(k, v []byte) error {
			info, err := decodePackInfo(v)
			if err != nil || len(k) != 8 {
				c.report.add(Problem{What: fmt.Sprintf("index: the entry of pack %x is damaged", k)})
				return nil
			}
			c.known[binary.BigEndian.Uint64(k)] = usage{info: info}
			return nil
		})
		if err != nil {
			return err
		}
		return eachValue(ctx, b, func(k, v []byte, hidden bool) error {
			c.entry(k, v, !hidden)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for num, u := range c.known {
		c.report.Packs++
		c.report.Bytes += u.info.size
		c.total += u.info.size
		st, err := os.Stat(c.s.packs.path(num))
		switch {
		case err != nil:
			c.report.add(Problem{Pack: packName(num), What: fmt.Sprintf("pack %s with %d objects cannot be opened: %v", packName(num),
				u.objects, err)})
		case st.Size() < u.info.size || u.info.sealed && st.Size() > u.info.size:
			c.report.add(Problem{Pack: packName(num), What: fmt.Sprintf("pack %s has %d bytes, the index says %d", packName(num),
				st.Size(), u.info.size)})
		}
	}
	return c.strangers()
}

// entry looks at one entry of the index.
func (c *check) entry(k, v []byte, visible bool) {
	if len(k) != object.IDSize {
		c.report.add(Problem{What: fmt.Sprintf("index: %x is no object id", k)})
		return
	}
	id := object.ID(k)
	if visible {
		c.report.Objects++
	}
	e, err := decodeEntry(v)
	if err != nil {
		c.report.add(Problem{Object: id, What: fmt.Sprintf("index: the entry of object %s is damaged", id.Short())})
		return
	}
	u, ok := c.known[e.pack]
	if !ok || e.off < pack.HeaderLen || e.off+int64(e.recordLen()) > u.info.size {
		c.report.add(Problem{Object: id, Kind: e.kind.String(), What: fmt.Sprintf("index: %s %s should be at %d in pack %s, where nothing can be",
			e.kind, id.Short(), e.off, packName(e.pack))})
		return
	}
	u.objects++
	c.known[e.pack] = u
}

// strangers names files that look like packs and are none of ours.
func (c *check) strangers() error {
	files, err := os.ReadDir(c.s.packs.dir)
	if err != nil {
		return err
	}
	c.s.packs.mu.Lock()
	defer c.s.packs.mu.Unlock()
	for _, f := range files {
		num, ok := parsePackName(f.Name())
		if _, known := c.known[num]; ok && known {
			continue
		}
		if ok && c.s.packs.open[num] != nil {
			continue // of a batch that is open
		}
		if _, err := f.Info(); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c.report.add(Problem{Pack: f.Name(), What: fmt.Sprintf("file %s does not belong among the packs", f.Name())})
	}
	return nil
}

// packs reads every pack from its front and compares with the index what it meets.
func (c *check) packs(ctx context.Context) error {
	if c.opts.Quick {
		return nil
	}
	nums := make([]uint64, 0, len(c.known))
	for num := range c.known {
		nums = append(nums, num)
	}
	slices.Sort(nums)
	for _, num := range nums {
		if err := c.pack(ctx, num, c.known[num]); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) pack(ctx context.Context, num uint64, u usage) error {
	f, err := c.s.packs.acquire(num)
	if err != nil {
		return c.unmet(ctx, num, fmt.Sprintf("its pack %s cannot be opened", packName(num)))
	}
	defer c.s.packs.release(f)
	met := 0
	end, err := pack.Scan(f.f, u.info.size, func(found pack.Found) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.done += found.Len
		c.opts.Progress("packs", c.done, c.total)
		ok, err := c.found(ctx, num, found)
		if ok {
			met++
		}
		return err
	})
	if err != nil {
		return err
	}
	if end.Sealed != u.info.sealed && u.info.sealed {
		c.report.add(Problem{Pack: packName(num), What: fmt.Sprintf("pack %s has no end record that fits", packName(num))})
	}
	if met == u.objects {
		return nil
	}
	return c.unmet(ctx, num, fmt.Sprintf("it is not where it should be in pack %s", packName(num)))
}

// found looks at what is at one place of a pack. ok says that it is a record that the index knows of, damaged or not.
func (c *check) found(ctx context.Context, num uint64, found pack.Found) (ok bool, err error) {
	p := Problem{Pack: packName(num), Offset: found.Off}
	if found.Record == nil {
		p.What = fmt.Sprintf("pack %s: %d bytes at %d are damaged: %v", p.Pack, found.Len, found.Off, found.Err)
		c.report.add(p)
		return false, nil
	}
	id := found.Record.ID
	e, ok, err := c.s.lookupBase(id)
	ok = ok && err == nil && e.pack == num && e.off == found.Off && e.recordLen() == found.Record.RecordLen() &&
		e.enc == found.Record.Encoding && e.base == found.Record.Base && e.kind == found.Record.Kind
	if !ok {
		// Two entries may stand for one id, where a hidden object was stored once more.
		if h, hidden, herr := c.s.lookupIn(id, bucketHidden); herr == nil && hidden && h.pack == num && h.off == found.Off {
			e, ok = h, true
		}
	}
	p.Kind = found.Record.Kind.String()
	if found.Err != nil {
		p.What = fmt.Sprintf("pack %s at %d: %v", p.Pack, found.Off, found.Err)
		if ok {
			p.Object = id
		}
		c.report.add(p)
		return ok, nil
	}
	if !ok {
		return false, nil // dead
	}
	if err := c.verify(id, e, found.Record); err != nil {
		p.Object, p.What = id, err.Error()
		c.report.add(p)
	}
	return true, nil
}

// verify decodes an object and compares it with its id.
func (c *check) verify(id object.ID, e entry, rec *pack.Record) error {
	var base []byte
	if e.enc.HasBase() {
		b, ok, err := c.s.lookupBase(e.base)
		if err != nil {
			return err
		}
		if !ok {
			return errs.New(errs.Damaged, "%s %s is a delta of %s, which is missing", e.kind, id.Short(), e.base.Short())
		}
		if base, err = c.s.get(context.Background(), b.kind, e.base, c.s.lookupBase); err != nil {
			return err
		}
	}
	plain, err := c.s.codec.Decode(rec, base)
	if err != nil {
		return errs.New(errs.Damaged, "%s %s: %w", e.kind, id.Short(), err)
	}
	if object.Sum(e.kind, plain) != id {
		return errs.New(errs.Damaged, "%s %s is damaged: its content has another id", e.kind, id.Short())
	}
	return nil
}

// unmet names the objects that the index says are in a pack and that reading it did not meet.
func (c *check) unmet(ctx context.Context, num uint64, why string) error {
	var ids []moved
	err := c.s.view(func(b *bbolt.Tx) error {
		return eachValue(ctx, b, func(k, v []byte, hidden bool) error {
			if e, err := decodeEntry(v); err == nil && e.pack == num {
				ids = append(ids, moved{id: object.ID(k), hidden: hidden, old: e})
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	slices.SortFunc(ids, func(x, y moved) int { return cmp.Compare(x.old.off, y.old.off) })
	for _, it := range ids {
		if _, err := c.s.readRecord(it.id, it.old); err != nil {
			c.report.add(Problem{
				Pack: packName(num), Offset: it.old.off, Object: it.id, Kind: it.old.kind.String(),
				What: fmt.Sprintf("%s %s cannot be read: %s: %v", it.old.kind, it.id.Short(), why, err),
			})
		}
	}
	return nil
}

// values checks refs and metadata, and the journal that holds them a second time.
func (c *check) values(ctx context.Context) error {
	c.s.txMu.Lock()
	defer c.s.txMu.Unlock()
	all := map[string][]byte{}
	err := c.s.view(func(b *bbolt.Tx) error {
		for _, name := range []string{bucketRefs, bucketMeta} {
			err := b.Bucket([]byte(name)).ForEach(func(k, v []byte) error {
				value, err := unseal(string(k), v)
				if err != nil || name == bucketRefs && len(value) != object.IDSize {
					c.report.add(Problem{What: fmt.Sprintf("index: the value of %q is damaged", k)})
					return nil
				}
				all[name+string(k)] = append([]byte{}, value...)
				if name == bucketRefs {
					c.tips = append(c.tips, tip{string(k), object.ID(value)})
				}
				return ctx.Err()
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.journal(all)
	return nil
}

// journal compares the journal with what the index says.
func (c *check) journal(all map[string][]byte) {
	st, err := readJournal(c.s.dir)
	if err != nil || st.torn || st.seq != c.s.log.lastSeq {
		c.report.add(Problem{What: "the journal is damaged; a restart writes it again from the index"})
		return
	}
	n := 0
	for bucket, values := range st.buckets() {
		for k, v := range values {
			if string(all[bucket+k]) != string(v) {
				c.report.add(Problem{What: fmt.Sprintf("index and journal have different values of %q", k)})
				c.restore = st
			}
			n++
		}
	}
	if n < len(all) {
		c.report.add(Problem{What: fmt.Sprintf("the journal has %d values, the index %d", n, len(all))})
		c.restore = st
	}
}

// reach walks from all refs and notes what is missing or cannot be read.
func (c *check) reach(ctx context.Context) error {
	seen := map[object.ID]struct{}{}
	var todo, later []object.Reference // later: what partial commits need, of which nothing must be there
	err := c.s.View(func(tx *Tx) (err error) {
		if c.pruned, err = tx.prunedCommits(); err == nil {
			c.partial, err = tx.partialCommits()
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, t := range c.tips {
		e, ok, err := c.s.lookup(t.id)
		if err != nil || !ok {
			c.report.add(Problem{Object: t.id, Missing: err == nil, What: fmt.Sprintf("ref %s points to %s, which is missing", t.ref, t.id.Short())})
			continue
		}
		todo = append(todo, object.Reference{Kind: e.kind, ID: t.id})
	}
	for len(todo)+len(later) > 0 {
		list, lax := &todo, len(todo) == 0
		if lax {
			list = &later
		}
		r := (*list)[len(*list)-1]
		*list = (*list)[:len(*list)-1]
		if _, ok := seen[r.ID]; ok {
			continue
		}
		seen[r.ID] = struct{}{}
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(seen)%1024 == 0 {
			c.opts.Progress("reach", int64(len(seen)), int64(c.report.Objects))
		}
		if r.Kind == object.KindChunk {
			if lax {
				continue
			}
			if e, ok, err := c.s.lookup(r.ID); err == nil && (!ok || e.kind != r.Kind) {
				c.report.add(Problem{
					Object: r.ID, Kind: r.Kind.String(), Missing: true,
					What: fmt.Sprintf("%s %s is missing", r.Kind, r.ID.Short()),
				})
			}
			continue
		}
		plain, err := c.s.load(ctx, r.Kind, r.ID, c.s.lookup)
		if err == nil {
			_, pruned := c.pruned[r.ID]
			_, partial := c.partial[r.ID]
			err = object.References(r.Kind, plain, func(r object.Reference) {
				switch {
				case r.Kind == object.KindCommit:
					todo = append(todo, r)
				case pruned:
				case partial || lax:
					later = append(later, r)
				default:
					todo = append(todo, r)
				}
			})
		}
		if err != nil && !(lax && isUnknown(err)) {
			c.report.add(Problem{Object: r.ID, Kind: r.Kind.String(), Missing: isUnknown(err), What: err.Error()})
		}
	}
	c.report.Reachable = len(seen)
	return nil
}
