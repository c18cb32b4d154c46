package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"dm/workcopy"
)

// Records that begin and end inside of pages, the same byte over and over in each.
const (
	recordSize  = 5000
	recordSlots = 16
	recordFiles = 4
)

// writeRecords writes records over each other in some files at the same time, each with one write(2).
func writeRecords(dir string) error {
	told := untilTold()
	ended := make(chan error, recordFiles)
	for i := range recordFiles {
		f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(i)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		go func() {
			for n := 0; !told(); n++ {
				if _, err := f.WriteAt(bytes.Repeat([]byte{byte(n)}, recordSize), int64(n%recordSlots*recordSize)); err != nil {
					ended <- fmt.Errorf("record %d: %w", n, err)
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
			ended <- nil
		}()
	}
	for range recordFiles {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// torn returns how many records are there in part.
func torn(content [][]byte) (n int) {
	for _, b := range content {
		for ; len(b) > 0; b = b[min(recordSize, len(b)):] {
			if r := b[:min(recordSize, len(b))]; len(r) < recordSize || bytes.Count(r, r[:1]) < recordSize {
				n++
			}
		}
	}
	return n
}

// inParts sees a write(2) that the kernel hands over in two parts, and can have the second wait at the gate.
type inParts struct {
	cuttableCopy
	wait bool

	mu   sync.Mutex
	ends map[workcopy.NodeID]end
	seen int // second parts
	late int // of these, what came when it was not waited for any more
}

// end is where a WRITE ended, and when it was done.
type end struct {
	off  int64
	done time.Time
}

// notLate is less than second parts are waited for.
const notLate = 15 * time.Millisecond

func (v *inParts) Write(ctx context.Context, id workcopy.NodeID, data [][]byte, off int64, writeback, killPriv bool) (int, error) {
	v.mu.Lock()
	first := v.ends[id]
	second := off > 0 && off%4096 == 0 && first.off == off
	if second {
		v.seen++
	}
	if second && time.Since(first.done) > notLate {
		v.late++
	}
	v.mu.Unlock()
	if second && v.wait {
		if _, err := v.GetAttr(ctx, id); err != nil {
			return 0, err
		}
	}
	n, err := v.cuttableCopy.Write(ctx, id, data, off, writeback, killPriv)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ends[id] = end{off + int64(n), time.Now()}
	return n, err
}

// A write(2) of several pages is in a cut as a whole or not at all, though in write-through the kernel hands it over in two
// parts: unless the writer got no processor for halfWait between them, or with the writeback cache in the middle of its
// copying, which a loaded machine may have now and then.
func TestCutHoldsWholeWrites(t *testing.T) {
	for _, c := range []struct {
		cache Cache
		wait  bool
		cuts  int
	}{{Writeback, false, 500}, {Through, false, 500}, {Through, true, 100}} {
		v := &inParts{cuttableCopy: cuttableCopy{newCopy(t)}, wait: c.wait, ends: map[workcopy.NodeID]end{}}
		m := mountTest(t, v, Options{Cache: c.cache, Flusher: newTestFlusher(t)})
		stop := helper(t, "write-records", m.Dir())
		wrong := 0
		for range c.cuts {
			time.Sleep(time.Millisecond)
			content, _, err := v.cut(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if torn(content) > 0 {
				wrong++
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		v.mu.Lock()
		what := fmt.Sprintf("%v, second parts wait %v: %d of %d cuts hold part of a write, %d writes came in parts, %d too late",
			c.cache, c.wait, wrong, c.cuts, v.seen, v.late)
		v.mu.Unlock()
		t.Log(what)
		few := c.cuts / 50
		if !c.wait {
			few += v.late
		}
		if c.wait == (wrong <= few) || c.cache == Through && v.seen < c.cuts {
			t.Error(what)
		}
	}
}
