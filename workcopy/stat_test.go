package workcopy

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/object"
)

// TestHostHoldsNobodyUp: what the host says of a file may take as long as it likes: nobody who asks for another waits.
func TestHostHoldsNobodyUp(t *testing.T) {
	for name, ask := range map[string]func(r *rig, id NodeID) error{
		"lookup": func(r *rig, _ NodeID) error { _, _, err := r.c.Lookup(r.ctx, RootID, "f"); return err },
		"dot":    func(r *rig, id NodeID) error { _, _, err := r.c.Lookup(r.ctx, id, "."); return err },
		"link":   func(r *rig, id NodeID) error { _, err := r.c.Link(r.ctx, id, RootID, "g"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id := r.file("f")
			r.write(id, 0, "bytes")
			n := r.c.nodes[id]
			before := n.refs
			n.file.mu.Lock() // as while the file is opened or removed
			answer := make(chan error, 1)
			go func() { answer <- ask(r, id) }()
			free := false
			for range 5000 {
				if r.c.mu.TryRLock() {
					free = n.refs > before
					r.c.mu.RUnlock()
				}
				if free {
					break
				}
				time.Sleep(time.Millisecond)
			}
			n.file.mu.Unlock()
			r.ok(<-answer)
			if !free {
				t.Error("the mutex of all is held while one file is waited for")
			}
		})
	}
}

// TestBlocksWithoutTimes: to ask for a file's attributes does not make the host stamp its next write with a finer clock. Others
// on the machine may move that clock on, so some rounds are enough; if it were the question, hardly any would be left.
func TestBlocksWithoutTimes(t *testing.T) {
	r := newRig(t)
	const rounds, enough = 100, 20
	coarse := 0
	for i := range rounds {
		id := r.file(fmt.Sprint("f", i))
		r.write(id, 0, "bytes")
		_, err := r.c.GetAttr(r.ctx, id)
		r.ok(err)
		r.write(id, 0, "bytes")
		var now unix.Timespec
		r.ok(unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now))
		var st unix.Stat_t
		r.ok(unix.Stat(r.c.nodes[id].file.path, &st))
		if st.Ctim.Nano() <= now.Nano() {
			coarse++
		}
		time.Sleep(5 * time.Millisecond) // a step of the coarse clock
	}
	if coarse < enough {
		t.Errorf("only %d of %d writes have a time of the coarse clock", coarse, rounds)
	}
}

// BenchmarkLookup measures what the kernel asks most: names and attributes of files that are all here.
func BenchmarkLookup(b *testing.B) {
	ctx := context.Background()
	store := newMemory()
	c, err := Create(ctx, b.TempDir()+"/copy", Config{Source: store}, object.ID{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(ctx)
	const files = 2000
	var names []string
	var ids []NodeID
	for i := range files {
		names = append(names, fmt.Sprint("file", i))
		id, _, err := c.Make(ctx, RootID, names[i], NewInode{Mode: object.ModeRegular | 0o600})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write(ctx, id, [][]byte{[]byte("bytes")}, 0, false, false); err != nil {
			b.Fatal(err)
		}
		ids = append(ids, id)
	}
	lookup := func(i int) {
		if _, _, err := c.Lookup(ctx, RootID, names[i]); err != nil {
			b.Fatal(err)
		}
	}
	getattr := func(i int) {
		if _, err := c.GetAttr(ctx, ids[i]); err != nil {
			b.Fatal(err)
		}
	}
	for _, open := range []bool{true, false} {
		if !open {
			c.closeFiles()
		}
		for what, do := range map[string]func(int){"lookup": lookup, "getattr": getattr} {
			b.Run(fmt.Sprintf("%s/open=%v", what, open), func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); i++ {
						do(i % files)
					}
				})
			})
		}
	}
}
