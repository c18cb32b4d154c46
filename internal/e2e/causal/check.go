package causal

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Check returns the latest step that a state shows the effect of, and an error if the state is not one that was.
func Check(r *Ring, st State) (int64, error) {
	c := checker{ring: r, st: st, shows: make([][]int64, r.period())}
	for slot := range c.shows {
		if err := c.look(slot); err != nil {
			return 0, fmt.Errorf("%s: %w", r.describe(slot), err)
		}
		for _, v := range c.shows[slot] {
			c.m = max(c.m, v)
		}
	}
	// Unlink shows only by what is not there.
	for r.kind(r.slot(c.m+1)) == Unlink && !slices.Contains(c.shows[r.slot(r.created(c.m+1))], r.created(c.m+1)) {
		c.m++
	}
	for slot := range c.shows {
		if err := c.judge(slot); err != nil {
			return c.m, fmt.Errorf("step %d (%s) is there, but %s: %w", c.m, r.describe(r.slot(c.m)), r.describe(slot), err)
		}
	}
	return c.m, nil
}

type checker struct {
	ring  *Ring
	st    State
	shows [][]int64 // by slot, the steps it shows; several if the parts of a file differ
	m     int64     // the latest step that shows
}

func (c *checker) path(slot int, name string) string {
	return path.Join(c.ring.subdot(slot), c.ring.Name, name)
}

// look collects what a slot shows.
func (c *checker) look(slot int) error {
	k := c.ring.kind(slot)
	switch k {
	case Unlink:
		return nil // shows by what is not there; judged with Create
	case Create, Rename, Move:
		c.shows[slot] = c.numbered(slot, k)
		return nil
	}
	f, ok := c.st[c.path(slot, k.String())]
	if !ok {
		return fmt.Errorf("the file is missing")
	}
	switch k {
	case Grow:
		c.shows[slot] = []int64{f.Size}
	case Shrink:
		c.shows[slot] = []int64{shrinkFrom - f.Size}
	case SetTime:
		c.shows[slot] = []int64{f.Sec}
	case SetXattr:
		return c.stamps(slot, f.Step, 8, 8)
	case Append:
		return c.stamps(slot, f.Data, 0, 16)
	case Write:
		return c.stamps(slot, f.Data, 2*block, block)
	case Map:
		if len(f.Data) != 2*block {
			return fmt.Errorf("%d bytes", len(f.Data))
		}
		return c.stamps(slot, slices.Concat(f.Data[:8], f.Data[block:block+8]), 16, 8)
	case Direct:
		return c.stamps(slot, f.Data, block, block)
	case Replace:
		return c.stamps(slot, f.Data, 512, 512)
	}
	return nil
}

// stamps reads data as parts that each hold one step number all over; size 0 is any number of parts.
func (c *checker) stamps(slot int, data []byte, size, part int) error {
	if size != 0 && len(data) != size || len(data)%part != 0 || len(data) == 0 {
		return fmt.Errorf("%d bytes", len(data))
	}
	for p := range slices.Chunk(data, part) {
		v := binary.LittleEndian.Uint64(p)
		for w := range slices.Chunk(p, 8) {
			if binary.LittleEndian.Uint64(w) != v {
				return fmt.Errorf("a part is torn between steps %d and %d", v, binary.LittleEndian.Uint64(w))
			}
		}
		c.shows[slot] = append(c.shows[slot], int64(v))
	}
	return nil
}

// numbered returns the steps in names kind-step of a slot's directory.
func (c *checker) numbered(slot int, k Kind) []int64 {
	prefix := c.path(slot, "names/"+k.String()+"-")
	var steps []int64
	for p := range c.st {
		rest, ok := strings.CutPrefix(p, prefix)
		if !ok || strings.Contains(rest, "/") {
			continue
		}
		if v, err := strconv.ParseInt(rest, 10, 64); err == nil {
			steps = append(steps, v)
		}
	}
	slices.Sort(steps)
	return steps
}

// judge compares what a slot shows with what it showed at step m.
func (c *checker) judge(slot int) error {
	shows := c.shows[slot]
	want := c.ring.last(slot, c.m)
	next := c.ring.slot(c.m+1) == slot
	switch k := c.ring.kind(slot); k {
	case Unlink:
		return nil
	case Create:
		return c.judgeCreate(slot, want)
	case Move:
		return c.judgeMove(slot, want)
	case Append:
		return c.judgeAppend(slot, want)
	case Replace:
		if _, there := c.st[c.path(slot, "replace.new")]; there && !next {
			return fmt.Errorf("the new file is there long before or after its rename")
		}
	}
	for _, v := range shows {
		partial := want == c.m && v == want-c.ring.period()
		if v != want && !partial {
			return fmt.Errorf("shows %v, want %d", shows, want)
		}
	}
	if len(shows) == 0 || c.ring.kind(slot) == Rename && len(shows) != 1 {
		return fmt.Errorf("shows %v, want %d", shows, want)
	}
	return nil
}

func (c *checker) judgeCreate(slot int, want int64) error {
	unlink := slot + c.ring.first(Unlink) - c.ring.first(Create)
	gone := c.ring.last(unlink, c.m) > want
	shows := c.shows[slot]
	if len(shows) == 1 && shows[0] == want && !gone {
		return nil
	}
	if len(shows) == 0 && gone {
		return nil
	}
	return fmt.Errorf("names %v, want %d, which should be gone: %v", shows, want, gone)
}

func (c *checker) judgeAppend(slot int, want int64) error {
	next := int64(slot)
	for _, v := range c.shows[slot] {
		if v != next {
			return fmt.Errorf("a record says %d, want %d", v, next)
		}
		next += c.ring.period()
	}
	if next-c.ring.period() != want {
		return fmt.Errorf("the last record is %d, want %d", next-c.ring.period(), want)
	}
	return nil
}

// judgeMove: the directory is in one subdot only, that of the last move of all.
func (c *checker) judgeMove(slot int, want int64) error {
	last := int64(-1)
	for i := range c.ring.Subdots {
		last = max(last, c.ring.last(c.ring.first(Move)+i, c.m))
	}
	shows := c.shows[slot]
	if want != last {
		if len(shows) != 0 {
			return fmt.Errorf("is still at step %v, want it moved away", shows)
		}
		return nil
	}
	if len(shows) != 1 || shows[0] != want {
		return fmt.Errorf("shows %v, want %d", shows, want)
	}
	inside := c.path(slot, fmt.Sprintf("names/%s-%d/inside", Move, want))
	if string(c.st[inside].Data) != "moved along" {
		return fmt.Errorf("what was in the directory is not there")
	}
	return nil
}
