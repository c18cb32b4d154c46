package pack

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"math/bits"

	"dm/internal/errs"
)

// Similar looks at a few places of plain whether base has the same bytes anywhere. It is what makes AppendDict worth
// trying where stretches have moved, at a fraction of its cost.
func Similar(plain, base []byte) bool {
	const probes, size = 6, 24
	if len(plain) < 2*probes*size {
		return false
	}
	tried, found := 0, 0
	for i := range probes {
		at := (2*i + 1) * len(plain) / (2 * probes)
		probe := plain[at : at+size]
		if bytes.Count(probe, probe[:1]) > size/2 {
			continue // a run of one byte is everywhere
		}
		tried++
		if bytes.Contains(base, probe) {
			found++
		}
	}
	return found > 0 && 2*found >= tried
}

// minCopy is the shortest equal stretch that ends a run of literals: a run takes two to four bytes itself.
const minCopy = 8

// The flags of a delta.
const (
	flagZstd = 1 << iota // the literals are one zstd frame; written by older versions
	flagXOR              // literals are XORed with the base's bytes at their places, as far as it has some
	flagBody             // what is behind the flags is its plain length, as a uvarint, and one zstd frame
)

// run is a stretch kept from the base and one taken from the literals, in bytes.
type run struct{ copy, insert int }

// diff finds what plain has in other places than base has it: the runs and the literals, appended to lits. It gives up,
// with ok false, when the literals become more than limit or plain is longer than base and the rest alone is.
//
// Only equal offsets are compared. That is all a page file needs, whose pages stay where they are, and costs a tenth of a
// search for moved stretches.
func diff(plain, base []byte, limit int, runs []run, lits []byte) (_ []run, _ []byte, ok bool) {
	n := min(len(plain), len(base))
	done := 0 // bytes that are in runs
	for pos := 0; ; {
		pos += equal(plain[pos:n], base[pos:n])
		start := pos
		if start == n {
			break
		}
		end := different(plain, base, start, n)
		if len(lits)+end-start > limit {
			return runs, lits, false
		}
		runs = append(runs, run{start - done, end - start})
		lits = append(lits, plain[start:end]...)
		done, pos = end, end
	}
	if rest := plain[n:]; len(rest) > 0 {
		if len(lits)+len(rest) > limit {
			return runs, lits, false
		}
		runs = append(runs, run{n - done, len(rest)})
		lits = append(lits, rest...)
	}
	return runs, lits, true
}

// equal returns the length of the common prefix.
func equal(a, b []byte) int {
	b = b[:len(a)]
	i := 0
	for ; i+32 <= len(a); i += 32 {
		x, y := a[i:i+32:i+32], b[i:i+32:i+32]
		d := (binary.LittleEndian.Uint64(x) ^ binary.LittleEndian.Uint64(y)) |
			(binary.LittleEndian.Uint64(x[8:]) ^ binary.LittleEndian.Uint64(y[8:])) |
			(binary.LittleEndian.Uint64(x[16:]) ^ binary.LittleEndian.Uint64(y[16:])) |
			(binary.LittleEndian.Uint64(x[24:]) ^ binary.LittleEndian.Uint64(y[24:]))
		if d != 0 {
			break
		}
	}
	for ; i+8 <= len(a); i += 8 {
		if d := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)/8
		}
	}
	for ; i < len(a) && a[i] == b[i]; i++ {
	}
	return i
}

// different returns the end of the stretch that begins at start and differs: where minCopy equal bytes follow, or n.
func different(plain, base []byte, start, n int) int {
	same := 0
	for i := start; i < n; i++ {
		if plain[i] != base[i] {
			same = 0
		} else if same++; same == minCopy {
			return i + 1 - minCopy
		}
	}
	return n - same
}

// appendRuns appends the front of a delta's body: all but the literals.
func appendRuns(b []byte, runs []run) []byte {
	b = binary.AppendUvarint(b, uint64(len(runs)))
	for _, r := range runs {
		b = binary.AppendUvarint(b, uint64(r.copy))
		b = binary.AppendUvarint(b, uint64(r.insert))
	}
	return b
}

// xorLits XORs literals with what the base has in their places. Done twice it does nothing.
func xorLits(lits []byte, runs []run, base []byte) {
	pos := 0
	for _, r := range runs {
		pos += r.copy
		if pos < len(base) {
			there := lits[:min(r.insert, len(base)-pos)]
			subtle.XORBytes(there, there, base[pos:])
		}
		lits = lits[r.insert:]
		pos += r.insert
	}
}

// splitDelta takes a delta's body apart. lits may still be compressed; litLen is the plain length of the literals, at most
// plainLen.
func splitDelta(body []byte, plainLen int) (runs []byte, count, litLen int, lits []byte, err error) {
	bad := func(what string) ([]byte, int, int, []byte, error) {
		return nil, 0, 0, nil, errs.New(errs.Damaged, "delta: %s", what)
	}
	n, k := uvarint(body, plainLen)
	if k == 0 || n > len(body)/2 {
		return bad("bad number of runs")
	}
	b := body[k:]
	runs = b
	pos := 0
	for range n {
		cp, k := uvarint(b, plainLen-pos)
		if k == 0 {
			return bad("bad run")
		}
		b = b[k:]
		pos += cp
		ins, k := uvarint(b, plainLen-pos)
		if k == 0 {
			return bad("bad run")
		}
		b = b[k:]
		pos += ins
		litLen += ins
	}
	return runs, n, litLen, b, nil
}

// apply turns the base into the object, in the base's own memory where that is large enough: what a delta copies stays
// where it is. runs and lits come from splitDelta, lits being plain, and XORed with the base where xor says so. On an error the
// base is spoiled all the same.
func apply(plainLen int, base, runs []byte, count int, lits []byte, xor bool) ([]byte, error) {
	have := len(base) // bytes from here on do not come from the base
	out := base
	if plainLen > cap(out) {
		out = append(make([]byte, 0, plainLen), base...)
	}
	out = out[:plainLen]
	pos := 0
	for range count {
		cp, k := uvarint(runs, plainLen-pos)
		runs = runs[k:]
		ins, k := uvarint(runs, plainLen-pos-cp)
		runs = runs[k:]
		if cp > 0 && pos+cp > have || ins > len(lits) {
			return nil, errs.New(errs.Damaged, "delta: a run goes beyond what there is")
		}
		pos += cp
		there := 0 // literals that the base has bytes for
		if xor && pos < have {
			there = min(ins, have-pos)
			subtle.XORBytes(out[pos:], out[pos:pos+there], lits[:there])
		}
		copy(out[pos+there:], lits[there:ins])
		pos += ins
		lits = lits[ins:]
	}
	switch {
	case len(lits) != 0:
		return nil, errs.New(errs.Damaged, "delta: literals are left over")
	case pos < plainLen && plainLen > have:
		return nil, errs.New(errs.Damaged, "delta: the base is too short")
	}
	return out, nil
}

// uvarint reads a number of at most limit in its shortest form; k is 0 where there is none.
func uvarint(b []byte, limit int) (v, k int) {
	u, k := binary.Uvarint(b)
	if k <= 0 || u > uint64(limit) || k > 1 && b[k-1] == 0 {
		return 0, 0
	}
	return int(u), k
}
