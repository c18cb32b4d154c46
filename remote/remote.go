// Package remote moves commits between this machine and places outside of it.
//
// A remote has two halves with different promises. Objects are immutable and untrusted: they may be stored twice, in any
// order that keeps the rule below, and everyone who reads one compares it with its id. Refs, the branches and tags of a
// dot, are moved one at a time by compare-and-swap, and linearizable. What is there is found by three implementations
// of the same small interfaces, which pass the same tests (package remotetest):
//
//	remote/bucket      packs, indexes and refs as files in a bucket, without a server of ours
//	  remote/dir       a bucket that is a directory, local or on a share
//	  remote/s3        a bucket that is one of S3's
//	remote/hubremote   a hub, over the protocol of remote/hubproto
//
// # The rule
//
// A remote that has an object has everything the object needs. Whoever stores keeps to the order that follows from it
// (chunks, lists, trees, commits), and a hub checks it. So one answer "it is there" ends a walk, a push that broke off is
// taken up by asking what is missing, and a ref may move the moment its commit is there. The local store keeps the rule for
// commits only: Fetch puts them last.
//
// # Transfer
//
// Push walks what the remote's commits do not have (changed paths only: equal ids end a walk), asks in batches what is
// missing, and sends packs; Fetch is the mirror image. Objects travel as they are stored, as deltas where the receiver has
// their base. Both take up a transfer that broke off where it stopped, and their memory is bounded by a few packs and a
// few bytes per object.
package remote

import (
	"context"
	"regexp"
	"strings"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// Remote is a place outside of this machine that keeps dots. It is safe for concurrent use.
type Remote interface {
	// Check asks whether the remote is there and takes this user's key: NotAllowed, Unreachable, or what keeps it from being
	// a remote. Whether it can be pushed to is found out by the first push.
	Check(ctx context.Context) error
	// Dots returns the dots that the user may see, in order of names.
	Dots(ctx context.Context) ([]DotInfo, error)
	// Dot returns a dot, whether it exists or not: one without refs does not exist, and its first ref makes it. Name is
	// NAMESPACE/DOT.
	Dot(name string) (Dot, error)
	// Delete removes a dot: NotFound where there is none.
	Delete(ctx context.Context, name string) error
	// Close ends what is kept open. Nothing may be in use any more.
	Close() error
}

// DotInfo is a dot in a listing.
type DotInfo struct {
	Name     string // NAMESPACE/DOT
	ReadOnly bool   // the user may not push to it
}

// Dot is one dot at a remote. It is safe for concurrent use.
type Dot interface {
	Objects
	Refs
}

// Objects is the immutable half. All calls may be repeated; none has a limit on time but its context's.
type Objects interface {
	// Missing returns those of ids that the remote does not have for this dot, in their order. "Has" includes all that the
	// object needs. Of objects in dots that the user may not see it knows nothing.
	Missing(ctx context.Context, ids []object.ID) ([]object.ID, error)
	// Store stores a pack: when it returns, its objects are durable and not missing any more. Until then none of them is
	// to be seen. What objects of the pack need, and bases of its deltas, are in it or at the remote before.
	Store(ctx context.Context, p *Pack) error
	// Load calls fn, not concurrently, with the record of each object wanted that the remote has, in any order. It may
	// add records of other objects than chunks that it expects to be wanted next, of at most MaxExtra bytes. A record may be
	// a delta of an object that was not asked for. A record is valid until fn returns and has been compared with nothing.
	Load(ctx context.Context, req Request, fn func(r *pack.Record) error) error
}

// MaxBatch is how many ids may be asked for at a time.
const MaxBatch = 8192

// MaxExtra is how many bytes of records a Load may add that were not asked for.
const MaxExtra = 32 << 20

// Want is an object that is asked for.
type Want struct {
	Kind object.Kind
	ID   object.ID
}

// Request says what is to be loaded.
type Request struct {
	Wants []Want
	Haves []object.ID // commits that the asker has, with all that they need
}

// Refs is the mutable half: the branches and tags of a dot. Their names are heads/BRANCH and tags/TAG.
type Refs interface {
	// Refs returns all refs; none if the dot does not exist.
	Refs(ctx context.Context) (map[string]object.ID, error)
	// Move moves a ref from old to new. A zero old makes it, a zero new removes it. It fails with errs.Conflict and changes
	// nothing if the ref is not at old, with NotFound if the remote does not have the commit new, and with NotAllowed
	// where the user may only read. An error of another kind leaves open whether it moved.
	Move(ctx context.Context, ref string, old, new object.ID) error
}

// chains is an optional power of Objects: it knows how many records it takes to read an object. Push makes no deltas that
// would need more than MaxChain.
type chains interface {
	Depth(id object.ID) (depth int, ok bool)
}

// Local is the store of this machine.
type Local interface {
	object.Source
	Has(id object.ID) (bool, error)
	Begin(ctx context.Context) (Batch, error)
}

// Batch takes objects into the local store, all at once. Until it ends, what it was told to be there stays. It is safe for
// concurrent use.
type Batch interface {
	object.Source
	Has(id object.ID) (bool, error)
	// PutOver stores an object, perhaps as a delta of old, which may be zero.
	PutOver(ctx context.Context, kind object.Kind, plain []byte, old object.ID) (object.ID, error)
	Commit(ctx context.Context) error
	Abort()
}

// recordSource is an optional power of Local: an object's record as it is stored.
type recordSource interface {
	Record(ctx context.Context, kind object.Kind, id object.ID) (pack.Record, error)
}

// recordSink is an optional power of Batch: it stores a record as it came. plain is its object, compared with its id.
type recordSink interface {
	PutRecord(ctx context.Context, r *pack.Record, plain []byte) error
}

// The two sorts of refs.
const (
	Heads = "heads/"
	Tags  = "tags/"
)

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// maxName is how long the names of branches and tags may be.
const maxName = 64

// CheckDot says whether name is NAMESPACE/DOT.
func CheckDot(name string) error {
	ns, dot, ok := strings.Cut(name, "/")
	if !ok || !nameRE.MatchString(ns) || !nameRE.MatchString(dot) {
		return errs.New(errs.Usage, "invalid dot name '%.140s' at a remote: it is NAMESPACE/DOT, each of letters, digits, '_' and '-', at most 64", name)
	}
	return nil
}

// CheckRef says whether ref is heads/BRANCH or tags/TAG.
func CheckRef(ref string) error {
	for _, prefix := range []string{Heads, Tags} {
		if name, ok := strings.CutPrefix(ref, prefix); ok && nameRE.MatchString(name) {
			return nil
		}
	}
	return errs.New(errs.Usage, "invalid ref name '%.140s': it is heads/BRANCH or tags/TAG, with letters, digits, '_' and '-', at most 64", ref)
}

// Moved is the error of a Move for a ref that is at cur and not at old.
func Moved(ref string, cur, old object.ID) error {
	return errs.New(errs.Conflict, "%s is at %s and not at %s any more", ref, nameOf(cur), nameOf(old))
}

func nameOf(id object.ID) string {
	if id.IsZero() {
		return "no commit"
	}
	return "commit " + id.Short()
}
