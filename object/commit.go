package object

import (
	"encoding/binary"
	"math"
	"sort"
	"time"

	"dm/internal/errs"
)

// Limits on a commit's texts, in bytes and items.
const (
	MaxMessage = 1 << 20
	MaxMeta    = 1024
	maxParents = 16
)

// The years 0 to 9999, in seconds since 1970: those that RFC 3339 can write, and with it JSON. One commit beyond them would
// spoil every listing it is in.
const (
	minTime = -62167219200
	maxTime = 253402300799
)

// Commit is one state of a dot: the whole-dot directory with all subdots in it, and where it came from.
type Commit struct {
	Root    Entry  // the dot's top directory; no name
	Links   ID     // the link table: a tree of entries named by LinkName; zero where nothing is hard-linked
	NextIno uint64 // above every inode number used so far in this history
	Parents []ID
	Author  string
	Time    time.Time // UTC, nanoseconds; years 0 to 9999
	Message string
	Meta    map[string]string // the user's key-values
	System  map[string]string // dm's own notes: images and containers of the subdots
}

// Bytes returns the sum of all regular files' sizes, hard-linked ones counted once.
func (c *Commit) Bytes(links Totals) uint64 { return c.Root.Totals.Bytes + links.Bytes }

// Encode returns the canonical bytes.
func (c *Commit) Encode() []byte {
	b := []byte{formatVersion}
	root := c.Root
	root.Name = ""
	b = root.append(b)
	b = append(b, c.Links[:]...)
	b = binary.AppendUvarint(b, c.NextIno)
	b = binary.AppendUvarint(b, uint64(len(c.Parents)))
	for _, p := range c.Parents {
		b = append(b, p[:]...)
	}
	b = appendBytes(b, c.Author)
	b = appendInt(b, c.Time.Unix())
	b = binary.AppendUvarint(b, uint64(c.Time.Nanosecond()))
	b = appendBytes(b, c.Message)
	b = appendMap(b, c.Meta)
	return appendMap(b, c.System)
}

func appendMap(b []byte, m map[string]string) []byte {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, k := range keys {
		b = appendBytes(b, k)
		b = appendBytes(b, m[k])
	}
	return b
}

func (r *reader) stringMap() map[string]string {
	n := r.count(2)
	if n == 0 {
		return nil
	}
	if n > MaxMeta {
		r.fail("too many key-values")
		return nil
	}
	m := make(map[string]string, n)
	last := ""
	for i := range n {
		k, v := string(r.bytes(MaxMessage)), string(r.bytes(MaxMessage))
		if i > 0 && k <= last {
			r.fail("keys out of order")
		}
		last = k
		m[k] = v
	}
	return m
}

// DecodeCommit reads what Encode wrote and refuses everything else.
func DecodeCommit(b []byte) (*Commit, error) {
	r := &reader{kind: KindCommit, b: b}
	r.version()
	c := &Commit{Root: r.entry(true), Links: r.id(), NextIno: r.uint(math.MaxInt64)}
	if !c.Root.IsDir() && r.err == nil {
		r.fail("root is no directory")
	}
	n := r.count(IDSize)
	if n > maxParents {
		r.fail("too many parents")
		n = 0
	}
	for range n {
		c.Parents = append(c.Parents, r.id())
	}
	c.Author = string(r.bytes(MaxMessage))
	sec, nsec := r.int(), r.uint(999_999_999)
	if sec < minTime || sec > maxTime {
		r.fail("time out of range")
	}
	c.Time = time.Unix(sec, int64(nsec)).UTC()
	c.Message = string(r.bytes(MaxMessage))
	c.Meta = r.stringMap()
	c.System = r.stringMap()
	if err := r.end(); err != nil {
		return nil, err
	}
	if c.NextIno <= c.Root.Ino {
		return nil, errs.New(errs.Damaged, "decode commit: next inode number %d is in use", c.NextIno)
	}
	return c, nil
}

// Check says what is wrong with a commit before it is encoded.
func (c *Commit) Check() error {
	if _, err := DecodeCommit(c.Encode()); err != nil {
		return errs.New(errs.Usage, "commit cannot be stored: %w", err)
	}
	return nil
}
