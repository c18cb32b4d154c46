// Package chunker says where a stretch of file content is cut into chunks.
//
// There are two ways to cut. Fixed cuts every Block bytes: for files that are overwritten in place, such as the page
// files of databases, where blocks keep their place and a block that changed is stored as a delta against the block that
// stood there before. Gear cuts where the content itself says, so that after an insertion or deletion the cuts meet the
// old ones again: for files that grow or shift, such as logs, dumps and text.
//
// Both are part of the storage format: the same content must be cut in the same places for ever, or unchanged files are
// stored again. The golden vectors in testdata guard that.
//
// # Gear
//
// The rolling hash is that of Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data
// Deduplication" (USENIX ATC 2016): h = h<<1 + gear[b], in 64 bits, so that h depends on the last 64 bytes alone. A chunk
// ends behind the first byte at which the top bits of h are zero: strictBits of them while the chunk is shorter than Avg,
// looseBits from there on, never before Min and at the latest at Max ("normalized chunking", which narrows the spread of
// sizes). Hashing begins 64 bytes before Min, so that every decision rests on a whole window and on nothing before it.
//
// The table gear holds the first 256 outputs of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) from the seed
// 0x646d206765617231, the bytes "dm gear1".
package chunker

import "bytes"

// Sizes of chunks, in bytes.
const (
	Block = 64 << 10  // Fixed: every chunk but the last
	Min   = 16 << 10  // Gear: the shortest chunk but the last
	Avg   = 64 << 10  // Gear: about the usual one
	Max   = 256 << 10 // Gear: the longest
)

const (
	window     = 64 // bytes that the hash depends on
	strictBits = 18
	looseBits  = 14
	strictMask = uint64(1<<strictBits-1) << (64 - strictBits)
	looseMask  = uint64(1<<looseBits-1) << (64 - looseBits)
	gearSeed   = 0x646d206765617231
)

// gear is the table of the rolling hash. It is never written after its making.
var gear = func() (t [256]uint64) {
	state := uint64(gearSeed)
	for i := range t {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}()

// Fixed returns the length of the first chunk of buf, which holds at least Block bytes or ends where the content ends.
// It is 0 only where buf is empty.
func Fixed(buf []byte) int { return min(len(buf), Block) }

// Gear returns the length of the first chunk of buf, which holds at least Max bytes or ends where the content ends. It
// is 0 only where buf is empty.
func Gear(buf []byte) int {
	if len(buf) <= Min {
		return len(buf)
	}
	buf = buf[:min(len(buf), Max)]
	var h uint64
	for _, b := range buf[Min-window : Min-1] {
		h = h<<1 + gear[b]
	}
	strict := min(len(buf), Avg)
	if n, sum := scan(buf[Min-1:strict], h, strictMask); n > 0 {
		return Min - 1 + n
	} else {
		h = sum
	}
	if n, _ := scan(buf[strict:], h, looseMask); n > 0 {
		return strict + n
	}
	return len(buf)
}

// scan rolls h over b and returns the number of bytes up to and with the first at which h&mask is zero, or 0 if there is
// none, and h at the end.
//
// Each step needs the h of the step before, so it is their latency that counts. Two steps go together: with x and y for the
// table's values of two bytes, h*4 + (x*2+y) is what two steps make of h, and only the multiplication waits for it.
func scan(b []byte, h, mask uint64) (int, uint64) {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		p := b[i : i+8 : i+8]
		x, y := gear[p[0]], gear[p[1]]
		if (h*2+x)&mask == 0 {
			return i + 1, h
		}
		if h = h*4 + (x*2 + y); h&mask == 0 {
			return i + 2, h
		}
		x, y = gear[p[2]], gear[p[3]]
		if (h*2+x)&mask == 0 {
			return i + 3, h
		}
		if h = h*4 + (x*2 + y); h&mask == 0 {
			return i + 4, h
		}
		x, y = gear[p[4]], gear[p[5]]
		if (h*2+x)&mask == 0 {
			return i + 5, h
		}
		if h = h*4 + (x*2 + y); h&mask == 0 {
			return i + 6, h
		}
		x, y = gear[p[6]], gear[p[7]]
		if (h*2+x)&mask == 0 {
			return i + 7, h
		}
		if h = h*4 + (x*2 + y); h&mask == 0 {
			return i + 8, h
		}
	}
	for ; i < len(b); i++ {
		if h = h<<1 + gear[b[i]]; h&mask == 0 {
			return i + 1, h
		}
	}
	return 0, h
}

// zeros is what Zero compares with. It is never written.
var zeros [64 << 10]byte

// Zero says whether buf is all zero bytes. It looks at a few places first, so that data is recognized at once.
func Zero(buf []byte) bool {
	n := len(buf)
	if n == 0 {
		return true
	}
	if buf[0]|buf[n/2]|buf[n-1] != 0 {
		return false
	}
	for len(buf) > len(zeros) {
		if !bytes.Equal(buf[:len(zeros)], zeros[:]) {
			return false
		}
		buf = buf[len(zeros):]
	}
	return bytes.Equal(buf, zeros[:len(buf)])
}
