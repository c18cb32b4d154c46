package store

import (
	"context"
	"path/filepath"

	"dm/internal/durable"
	"dm/object"
	"dm/store/pack"
)

// repair takes out of the index what cannot be read and puts its records aside; then it moves what is whole out of the
// packs with damage in them, and puts those aside, too.
func (c *check) repair(ctx context.Context) error {
	if !c.opts.Repair || c.report.OK() {
		return nil
	}
	dir := filepath.Join(c.s.dir, quarantineName)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := c.s.update(func(tx *Tx) error {
		objects := tx.b.Bucket([]byte(bucketObjects))
		for id := range c.report.unreadable {
			v := objects.Get(id[:])
			if v == nil {
				continue
			}
			if err := c.putAside(dir, id, v); err != nil {
				return err
			}
			if err := objects.Delete(id[:]); err != nil {
				return err
			}
			c.report.PutAside++
		}
		if c.restore != nil && c.restore.seq == indexSeq(tx.b) {
			if err := c.restore.restore(tx.b); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	c.s.cache.drop(c.report.unreadable)
	if err := c.recover(ctx); err != nil {
		return err
	}
	return c.evacuate(ctx)
}

// recover searches the packs for whole copies of what is missing or was just put aside: of objects whose index entry was
// damaged, or that are stored twice.
func (c *check) recover(ctx context.Context) error {
	for range chainLimit { // a delta can come back after its base has
		before := c.report.Recovered
		for num, u := range c.known {
			if err := c.recoverFrom(ctx, num, u.info.size); err != nil {
				return err
			}
		}
		if c.report.Recovered == before {
			return nil
		}
	}
	return nil
}

func (c *check) recoverFrom(ctx context.Context, num uint64, size int64) error {
	f, err := c.s.packs.acquire(num)
	if err != nil {
		return nil // it is among the problems
	}
	defer c.s.packs.release(f)
	_, err = pack.Scan(f.f, size, func(found pack.Found) error {
		if err := ctx.Err(); err != nil || found.Err != nil {
			return err
		}
		id := found.Record.ID
		if _, ok := c.report.unreadable[id]; !ok {
			return nil
		}
		if has, err := c.s.Has(id); err != nil || has {
			return err
		}
		e := entryOf(&found.Record.Head)
		e.pack, e.off = num, found.Off
		if e.enc.HasBase() {
			base, ok, err := c.s.lookup(e.base)
			if err != nil || !ok {
				return err
			}
			e.depth = base.depth + 1
		}
		if c.verify(id, e, found.Record) != nil {
			return nil
		}
		c.report.Recovered++
		return c.s.update(func(tx *Tx) error {
			return tx.b.Bucket([]byte(bucketObjects)).Put(id[:], e.encode(nil))
		})
	})
	return err
}

// evacuate moves what lives in packs with damage to other packs.
func (c *check) evacuate(ctx context.Context) error {
	bad := map[string]bool{}
	for _, p := range c.report.Problems {
		bad[p.Pack] = p.Pack != ""
	}
	all, err := c.s.usage(ctx)
	if err != nil {
		return err
	}
	var group []victim
	for num, u := range all {
		if bad[packName(num)] {
			group = append(group, victim{num: num, usage: u})
		}
	}
	g := &collection{s: c.s, opts: GCOptions{Progress: c.opts.Progress}, aside: true}
	return g.rewriteGroup(ctx, group)
}

// putAside writes the bytes of a damaged record to quarantine, as far as they can be read.
func (c *check) putAside(dir string, id object.ID, v []byte) error {
	e, err := decodeEntry(v)
	if err != nil {
		return nil
	}
	f, err := c.s.packs.acquire(e.pack)
	if err != nil {
		return nil
	}
	defer c.s.packs.release(f)
	b := make([]byte, e.recordLen())
	n, _ := f.f.ReadAt(b, e.off)
	if n == 0 {
		return nil
	}
	return durable.WriteFile(filepath.Join(dir, id.String()+".record"), b[:n], 0o600)
}
