package bucket

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// All refs of a dot are in one file, so that one request reads them and a machine that moves one meets all others.
const (
	refsHead = "dm refs 1\n"
	maxRefs  = 16 << 20 // bytes of the file
)

func encodeRefs(refs map[string]object.ID) []byte {
	b := []byte(refsHead)
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		b = fmt.Appendf(b, "%s %s\n", name, refs[name])
	}
	return fmt.Appendf(b, "end %08x\n", checksum(b))
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func decodeRefs(b []byte) (map[string]object.ID, error) {
	head, rest, _ := bytes.Cut(b, []byte("\n"))
	var v int
	if n, _ := fmt.Sscanf(string(head), "dm refs %d", &v); n == 1 && v > version {
		return nil, errs.WithHint(errs.New(errs.Usage, "refs have format %d; this dm knows %d", v, version), "install a newer dm")
	}
	end := bytes.LastIndex(b, []byte("end "))
	if string(head)+"\n" != refsHead || end < 0 || string(b[end:]) != fmt.Sprintf("end %08x\n", checksum(b[:end])) {
		return nil, errs.New(errs.Damaged, "refs are damaged")
	}
	refs := map[string]object.ID{}
	last := ""
	for line := range strings.Lines(string(rest[:len(rest)-(len(b)-end)])) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		id, err := object.ParseID(value)
		if !ok || err != nil || remote.CheckRef(name) != nil || id.IsZero() || name <= last {
			return nil, errs.New(errs.Damaged, "refs are damaged: bad line %.100q", line)
		}
		refs[name], last = id, name
	}
	return refs, nil
}

// readRefs reads the refs of a dot. tag is "" where there is no file.
func (r *Remote) readRefs(ctx context.Context, name string) (refs map[string]object.ID, tag string, err error) {
	data, tag, err := r.b.Get(ctx, refPrefix+name, maxRefs)
	if errs.KindOf(err) == errs.NotFound {
		return map[string]object.ID{}, "", nil
	}
	if err == nil {
		refs, err = decodeRefs(data)
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the refs of %s: %w", name, err)
	}
	return refs, tag, nil
}

// Refs returns the refs of the dot.
func (d *dot) Refs(ctx context.Context) (map[string]object.ID, error) {
	if err := d.r.Check(ctx); err != nil {
		return nil, err
	}
	refs, _, err := d.r.readRefs(ctx, d.name)
	return refs, err
}

// maxRetries is how often a change of refs is tried again because somebody else changed another ref of the dot.
const maxRetries = 100

func busy(name string) error {
	return errs.WithHint(errs.New(errs.Conflict, "refs of %s are being changed by others all the time", name), "try again")
}

// Move moves a ref. That somebody else moved another ref of this dot meanwhile is no reason to fail.
func (d *dot) Move(ctx context.Context, ref string, old, new object.ID) error {
	if err := remote.CheckRef(ref); err != nil {
		return err
	}
	if err := d.r.create(ctx); err != nil {
		return err
	}
	if err := d.mustHave(ctx, new); err != nil {
		return err
	}
	for try := range maxRetries {
		refs, tag, err := d.r.readRefs(ctx, d.name)
		if err != nil {
			return err
		}
		if cur := refs[ref]; cur == new && try > 0 {
			return nil // the answer to the first try was lost
		} else if cur != old {
			return remote.Moved(ref, cur, old)
		}
		if new.IsZero() {
			delete(refs, ref)
		} else {
			refs[ref] = new
		}
		data := encodeRefs(refs)
		if len(data) > maxRefs {
			return errs.New(errs.NotAllowed, "%s has %d branches and tags, more are not allowed", d.name, len(refs)-1)
		}
		err = d.r.b.Swap(ctx, refPrefix+d.name, data, tag)
		if err == nil || errs.KindOf(err) != errs.Conflict {
			return err
		}
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(min(try+1, 10)) * int64(5*time.Millisecond)))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return busy(d.name)
}

// mustHave refuses a commit that the remote does not have.
func (d *dot) mustHave(ctx context.Context, id object.ID) error {
	if id.IsZero() {
		return nil
	}
	for again := false; ; again = true {
		if kind, ok := d.r.Kind(id); ok && kind == object.KindCommit {
			return nil
		}
		if again {
			break
		}
		if err := d.r.readIndex(ctx); err != nil {
			return err
		}
	}
	return errs.New(errs.NotFound, "%s has no commit %s", d.r.b, id.Short())
}
