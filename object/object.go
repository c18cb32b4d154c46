// Package object is dm's vocabulary: what a commit is made of and how it is named.
//
// Everything dm stores is an object of one of four kinds:
//
//	chunk    a piece of a file's content
//	list     the ordered chunks of one file; long lists are lists of lists
//	tree     the entries of one directory; long trees are trees of trees
//	commit   the root of one state: a directory, its parents, who, when, why
//
// An object's name is its ID, a BLAKE3 hash over its kind and its plain bytes. How an object is stored (compressed, as a
// delta) does not touch its ID. Each kind has one canonical encoding, described byte by byte in docs/format/objects.md.
//
// Lists and trees are cut into nodes by content, not by position, so that a small change deep inside a large one makes
// only the nodes on its way new (the prolly tree of Noms and Dolt). ListEditor and EditTree do this without reading what
// they do not touch.
//
// Everything decoded here may come from a hostile remote: decoders check every bound and never panic.
package object

import (
	"context"
	"encoding/hex"
	"sync"

	"github.com/zeebo/blake3"

	"dm/internal/errs"
)

// Kind is the kind of an object. The values are part of the format.
type Kind uint8

// The four kinds.
const (
	KindChunk  Kind = 1
	KindList   Kind = 2
	KindTree   Kind = 3
	KindCommit Kind = 4
)

// Valid says whether k is one of the four kinds.
func (k Kind) Valid() bool { return k >= KindChunk && k <= KindCommit }

func (k Kind) String() string {
	switch k {
	case KindChunk:
		return "chunk"
	case KindList:
		return "list"
	case KindTree:
		return "tree"
	case KindCommit:
		return "commit"
	}
	return "unknown"
}

// MaxSize is the largest plain size of an object in bytes. Whoever decodes a foreign object allocates no more than this.
const MaxSize = 4 << 20

// IDSize is the length of an ID in bytes.
const IDSize = 32

// ID names an object. The zero ID names nothing: as a chunk it stands for zero bytes (a hole), as a tree for the empty
// directory.
type ID [IDSize]byte

// IsZero says whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the ID as 64 lower-case hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 12 hex digits, for people.
func (id ID) Short() string { return hex.EncodeToString(id[:6]) }

// ParseID reads 64 hex digits.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*IDSize {
		return id, errs.New(errs.Usage, "%q is not an object id: it has %d characters, not %d", s, len(s), 2*IDSize)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, errs.New(errs.Usage, "%q is not an object id: %w", s, err)
	}
	return id, nil
}

// contexts separate the kinds' hashes by BLAKE3's key derivation mode, so that no chunk can pose as a tree.
// `b3sum --derive-key "dm 2026 chunk"` computes the same.
var hashers = func() (pools [KindCommit + 1]*sync.Pool) {
	for k := KindChunk; k <= KindCommit; k++ {
		context := "dm 2026 " + k.String()
		pools[k] = &sync.Pool{New: func() any { return blake3.NewDeriveKey(context) }}
	}
	return pools
}()

// Sum returns the ID of an object. It is safe for concurrent use. kind must be valid.
func Sum(kind Kind, plain []byte) (id ID) {
	h := hashers[kind].Get().(*blake3.Hasher)
	h.Reset()
	h.Write(plain)
	h.Sum(id[:0])
	hashers[kind].Put(h)
	return id
}

// Source reads objects. Implementations verify what they return against id, are safe for concurrent use, and return an
// error of kind NotFound for an object they do not have and Damaged for one that is not what it was.
// The caller must not change the bytes returned.
type Source interface {
	Get(ctx context.Context, kind Kind, id ID) ([]byte, error)
}

// Sink stores objects and is safe for concurrent use. It does not keep plain. Storing an object twice stores it once.
type Sink interface {
	Put(ctx context.Context, kind Kind, plain []byte) (ID, error)
}
