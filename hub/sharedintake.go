package hub

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// takeIn takes in a pack. While it comes it goes to a file: a client that is slow must not keep memory from others. Then it
// is looked at as a whole, and stored as it came, but for deltas of what only the sender can see and for chains of deltas
// that would become too long.
func (e *sharedEngine) takeIn(ctx context.Context, s *sight, body io.Reader) (st packStats, err error) {
	file, size, err := e.spool(body)
	if err != nil {
		return st, err
	}
	defer file.Close()
	room := size + intakeSize
	if err := e.room.Acquire(ctx, room); err != nil {
		return st, err
	}
	defer e.room.Release(room)
	data := make([]byte, size)
	if _, err := file.ReadAt(data, 0); err != nil {
		return st, fmt.Errorf("read what was received: %w", err)
	}
	own, others, err := e.open(s)
	if err != nil {
		return st, err
	}
	in := &sharedIntake{
		contents: newContents(), e: e, own: own, others: others, data: data, at: map[object.ID]int{},
		depth: map[object.ID]int{}, plains: newPlains(plainsSize),
	}
	if err := in.scan(); err != nil {
		return st, err
	}
	st.Objects, st.Bytes = len(in.records), in.bytes
	if err := in.find(ctx); err != nil {
		return st, err
	}
	add := own.r.Add()
	if err := in.store(ctx, add); err != nil {
		return st, err
	}
	needs, err := in.outside()
	if err != nil {
		return st, err
	}
	if st.Adopted, err = e.adopt(ctx, add, own, others, needs); err != nil {
		return st, err
	}
	if err := s.still(ctx); err != nil {
		return st, err
	}
	if err := add.Commit(ctx); err != nil {
		return st, err
	}
	e.tidy(own)
	return st, nil
}

// spool writes what comes into a file without a name.
func (e *sharedEngine) spool(body io.Reader) (file *os.File, size int64, err error) {
	file, err = os.CreateTemp(e.dir, "pack-*.tmp")
	if err != nil {
		return nil, 0, errs.New(errs.KindOf(err), "receive a pack: %w", err)
	}
	if err = os.Remove(file.Name()); err == nil {
		size, err = io.Copy(file, body)
	}
	if err != nil {
		file.Close()
		return nil, 0, fmt.Errorf("receive a pack: %w", err)
	}
	return file, size, nil
}

const (
	// plainsSize is how many bytes of plain objects are kept as bases.
	plainsSize = 4 << 20
	// windowSize is how many bytes of bases are read from the bucket at a time.
	windowSize = 4 << 20
	// maxUnpacked bounds the work on one pack, in bytes: long chains whose ends come by turns would have their bases unpacked
	// again each time. What dm sends has 256 MiB and chains of remote.MaxChain.
	maxUnpacked = 4 * hubproto.MaxPlain
	// outSize is from how many bytes on a pack is stored and another one begun. What clients send is mostly below.
	outSize = 12 << 20
)

// sharedIntake is one pack being taken in.
type sharedIntake struct {
	contents
	e        *sharedEngine
	own      *sharedDot
	others   []*sharedDot
	data     []byte
	records  []remote.Located // as they came; Depth is not set
	at       map[object.ID]int
	plains   *plains
	unpacked int64                // bytes, those that were unpacked again included
	bases    map[object.ID][]byte // from the bucket, for the records at hand
	out      packBuilder
	depth    map[object.ID]int // of what was stored
}

// scan looks at the pack's form: where its records are, and that it is whole and within limits.
func (in *sharedIntake) scan() error {
	off := int64(pack.HeaderLen)
	return in.read(pack.NewReader(bytes.NewReader(in.data)), func(rec *pack.Record) error {
		in.at[rec.ID] = len(in.records)
		in.records = append(in.records, remote.Located{Head: rec.Head, Off: off})
		off += int64(rec.RecordLen())
		return nil
	})
}

// standsOutside says whether a record is a delta of what is not before it in the pack.
func (in *sharedIntake) standsOutside(i int) bool {
	h := &in.records[i].Head
	if !h.Encoding.HasBase() {
		return false
	}
	at, ok := in.at[h.Base]
	return !ok || at >= i
}

// where finds a dot in sight that has an object.
func (in *sharedIntake) where(kind object.Kind, id object.ID) *sharedDot {
	for _, sd := range append([]*sharedDot{in.own}, in.others...) {
		if k, ok := sd.r.Kind(id); ok && k == kind {
			return sd
		}
	}
	return nil
}

// find makes sure that the bases that are not in the pack are in sight.
func (in *sharedIntake) find(ctx context.Context) error {
	for refreshed := false; ; refreshed = true {
		missing := -1
		for i := range in.records {
			h := &in.records[i].Head
			if in.standsOutside(i) && in.where(h.Kind, h.Base) == nil {
				missing = i
				break
			}
		}
		if missing < 0 {
			return nil
		}
		if refreshed {
			h := &in.records[missing].Head
			return errs.New(errs.Damaged, "%s %s is a delta of %s, which is not here", h.Kind, h.ID.Short(), h.Base.Short())
		}
		if err := refresh(ctx, append([]*sharedDot{in.own}, in.others...)...); err != nil {
			return err
		}
	}
}

// store checks each record and stores them, mostly in one pack. Bases out of the bucket are read for some records at a time.
func (in *sharedIntake) store(ctx context.Context, add *bucket.Addition) error {
	in.out = newPackBuilder(min(len(in.data), outSize) + pack.MaxRecord)
	for i := 0; i < len(in.records); {
		n, err := in.window(ctx, i)
		if err != nil {
			return err
		}
		for ; n > 0; n-- {
			if err := in.record(ctx, i); err != nil {
				return err
			}
			i++
			if len(in.out.data) > outSize {
				if err := in.flush(ctx, add); err != nil {
					return err
				}
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	in.bases = nil
	return in.flush(ctx, add)
}

// flush stores the pack at hand. Nothing of it can be seen yet.
func (in *sharedIntake) flush(ctx context.Context, add *bucket.Addition) error {
	if len(in.out.records) == 0 {
		return nil
	}
	err := add.Pack(ctx, in.out.seal())
	in.out.reset()
	return err
}

// window reads the bases of the next records and says how many records they are for.
func (in *sharedIntake) window(ctx context.Context, from int) (n int, err error) {
	wants := map[*sharedDot][]object.ID{}
	size := 0
	for i := from; i < len(in.records) && size < windowSize; i++ {
		n++
		if !in.standsOutside(i) {
			continue
		}
		h := &in.records[i].Head
		sd := in.where(h.Kind, h.Base)
		base, _, _ := sd.r.Head(h.Base)
		size += base.PlainLen
		wants[sd] = append(wants[sd], h.Base)
	}
	in.bases = map[object.ID][]byte{}
	for sd, ids := range wants {
		err := in.e.read(ctx, sd, ids, func(_ object.Kind, id object.ID, plain []byte) error {
			in.bases[id] = plain
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// record checks one record and appends it.
func (in *sharedIntake) record(ctx context.Context, i int) error {
	h := &in.records[i].Head
	plain, err := in.plain(ctx, i)
	if err != nil {
		return fmt.Errorf("unpack %s %s: %w", h.Kind, h.ID.Short(), err)
	}
	if err := in.need(h, plain); err != nil {
		return err
	}
	depth, asItIs := 0, true
	if h.Encoding.HasBase() {
		if d, ok := in.depth[h.Base]; ok {
			depth = d + 1
		} else if base, d, ok := in.own.r.Head(h.Base); ok && base.Kind == h.Kind {
			depth = d + 1
		} else {
			asItIs = false // the dot's other readers may not see the base
		}
	}
	if asItIs && depth <= remote.MaxChain {
		rec, err := pack.ParseRecord(in.data[in.records[i].Off:])
		if err != nil {
			return err
		}
		in.out.record(&rec, depth)
		in.depth[h.ID] = depth
		return nil
	}
	in.out.whole(in.e.codec, h.Kind, h.ID, plain)
	in.depth[h.ID] = 0
	return nil
}

// plain unpacks a record of the pack and compares it with its id. Bases that are not remembered are unpacked again.
func (in *sharedIntake) plain(ctx context.Context, i int) ([]byte, error) {
	h := &in.records[i].Head
	if b, ok := in.plains.get(h.ID); ok {
		return b, nil
	}
	if in.unpacked += int64(h.PlainLen); in.unpacked > maxUnpacked {
		return nil, errs.New(errs.Damaged, "the pack's deltas take unpacking more than %d bytes", int64(maxUnpacked))
	}
	rec, err := pack.ParseRecord(in.data[in.records[i].Off:])
	if err != nil {
		return nil, err
	}
	var base []byte
	switch {
	case !h.Encoding.HasBase():
	case in.standsOutside(i):
		if base, err = in.base(ctx, h); err != nil {
			return nil, err
		}
	default:
		at := in.at[h.Base]
		if in.records[at].Kind != h.Kind {
			return nil, errs.New(errs.Damaged, "base %s is a %s", h.Base.Short(), in.records[at].Kind)
		}
		if base, err = in.plain(ctx, at); err != nil {
			return nil, err
		}
	}
	plain, err := in.e.codec.Decode(&rec, base)
	if err != nil {
		return nil, err
	}
	if object.Sum(h.Kind, plain) != h.ID {
		return nil, errs.New(errs.Damaged, "%s %s has other content than its id says", h.Kind, h.ID.Short())
	}
	in.plains.put(h.ID, plain)
	return plain, nil
}

// base returns a delta's base that is not in the pack. Mostly it was read with others.
func (in *sharedIntake) base(ctx context.Context, h *pack.Head) (base []byte, err error) {
	if b, ok := in.bases[h.Base]; ok {
		return b, nil
	}
	err = in.e.read(ctx, in.where(h.Kind, h.Base), []object.ID{h.Base}, func(_ object.Kind, _ object.ID, plain []byte) error {
		base = plain
		return nil
	})
	return base, err
}
