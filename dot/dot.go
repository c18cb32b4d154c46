// Package dot is what a user can do with dots: create, commit, branch, go back, compare, take data in and out. It joins a
// freeze of a working copy, the chunking of what is dirty and the store into one Commit, and knows nothing of mounts,
// sockets or command lines.
//
// Everything it has to remember is in the store's metadata, so that one transaction moves a branch and what belongs to it:
//
//	names/NAMESPACE/NAME      the dot's id
//	dots/ID                   the dot: its name, current branch, cache mode, upstreams
//	branches/ID/BRANCH        the branch: the directory of its working copy, its number of commits, an unfinished reset
//	trash/COPY                the directory of a working copy that is to be deleted
//	refs dots/ID/heads/BRANCH and dots/ID/tags/TAG point to commits
//
// A dot's id is drawn once and never changes, so a rename is a change of two records and disturbs nobody.
package dot

import (
	"context"
	"io"
	"time"

	"dm/internal/errs"
	"dm/object"
)

// Config is what Open needs. (The store and the working copies' needs are added as their packages appear.)
type Config struct {
	Dir string           // holds the working copies, one directory each
	Now func() time.Time // nil: time.Now
	// Detach is called before a working copy is closed for good, with its id; it unmounts what shows it, or says in an
	// error of kind Conflict who uses it. nil: nobody shows any.
	Detach func(ctx context.Context, copyID string) error
}

// Dots is all dots of one machine. Its methods are safe for concurrent use. Of each working copy one change of its base at
// a time (commit, reset, restore, delete) runs, others wait; everything else runs beside it. A Name's Branch
// may be empty: the dot's current one. A dot that is not there is an error of kind NotFound.
type Dots struct {
	cfg Config
}

// Open reads the metadata, finishes deletions that a crash cut short, and opens no working copy yet.
func Open(ctx context.Context, cfg Config) (*Dots, error) { return &Dots{cfg: cfg}, nil }

// Close closes all working copies that are open. Nothing may use them any more.
func (d *Dots) Close(ctx context.Context) error { return nil }

func pending() error { return errs.New(errs.Internal, "this build of dm is not complete") }

// Create makes a dot with the subdots named. It exists already: Conflict.
func (d *Dots) Create(ctx context.Context, n Name, o CreateOptions) (*Info, error) {
	return nil, pending()
}

// Delete removes a dot with all its branches, tags and working copies. What only it held goes with the next gc.
func (d *Dots) Delete(ctx context.Context, n Name) error { return pending() }

// Rename gives a dot another name. The new one exists already: Conflict.
func (d *Dots) Rename(ctx context.Context, from, to Name) error { return pending() }

// Info says what is known about a dot.
func (d *Dots) Info(ctx context.Context, n Name) (*Info, error) { return nil, pending() }

// Names returns all dots in order, the own namespace's first.
func (d *Dots) Names(ctx context.Context) ([]Name, error) { return nil, pending() }

// List returns a line for each dot, in the order of Names. Its cost per dot does not depend on the dot's size. A dot
// whose working copy cannot be opened has an Error in its line and does not spoil the others'.
func (d *Dots) List(ctx context.Context) ([]Listing, error) { return nil, pending() }

// SetUpstream sets a dot's counterpart at a remote; an empty name removes it.
func (d *Dots) SetUpstream(ctx context.Context, n Name, u Upstream) error { return pending() }

// WorkingCopy is the open working copy of one branch.
type WorkingCopy struct {
	ID     string // 16 hex digits, of this working copy alone: the name of its directory
	DotID  string
	Branch string
	Cache  CacheMode
}

// WorkingCopy opens the working copy of a branch, or returns the one that is open. It stays open until Release, Close or
// the branch's deletion.
func (d *Dots) WorkingCopy(ctx context.Context, n Name) (*WorkingCopy, error) { return nil, pending() }

// Release closes a working copy that nobody shows any more. Not open: no error.
func (d *Dots) Release(ctx context.Context, copyID string) error { return pending() }

// EnsureSubdot makes a subdot in the working copy if it is not there, and says whether it made it. n.Subdot may be empty:
// the default one.
func (d *Dots) EnsureSubdot(ctx context.Context, n Name) (made bool, err error) {
	return false, pending()
}

// HasSubdot says whether the working copy holds a subdot.
func (d *Dots) HasSubdot(ctx context.Context, n Name) (bool, error) { return false, pending() }

// Status says how the working copy of a branch differs from its commit.
func (d *Dots) Status(ctx context.Context, n Name) (*Status, error) { return nil, pending() }

// Commit makes a commit of all subdots at one instant and moves the branch to it. When it fails, nothing has happened.
func (d *Dots) Commit(ctx context.Context, n Name, req CommitRequest) (*CommitResult, error) {
	return nil, pending()
}

// ParseMeta reads the key=value arguments of a commit.
func ParseMeta(fields []string) (map[string]string, error) { return nil, pending() }

// Resolve finds the commit that a revision means: HEAD, a branch, a tag, a full id or a unique prefix of at least 4
// digits, each with any number of ^ and ~N behind. An empty rev is HEAD, the tip of n's branch.
func (d *Dots) Resolve(ctx context.Context, n Name, rev string) (object.ID, *object.Commit, error) {
	return object.ID{}, nil, pending()
}

// Log returns the commits that lead to rev, the oldest first; max above 0: only the newest max of them.
// A branch without a commit has an empty log.
func (d *Dots) Log(ctx context.Context, n Name, rev string, max int) ([]CommitInfo, error) {
	return nil, pending()
}

// Show returns a commit with what it changed.
func (d *Dots) Show(ctx context.Context, n Name, rev string) (*CommitDetail, error) {
	return nil, pending()
}

// Diff returns what differs from one state to the other, by path. An empty from is HEAD; an empty to is the working copy.
func (d *Dots) Diff(ctx context.Context, n Name, from, to string) ([]Change, error) {
	return nil, pending()
}

// Cat writes the content of a committed file. path is subdot/path.
func (d *Dots) Cat(ctx context.Context, n Name, rev, path string, w io.Writer) error {
	return pending()
}

// Export writes a commit, or one subdot of it, as a tar archive in PAX format, with everything a tar archive can hold.
func (d *Dots) Export(ctx context.Context, n Name, rev, subdot string, w io.Writer) error {
	return pending()
}

// Import copies a directory of the host into a subdot of the working copy, which it makes if needed: modes, owners, times,
// extended attributes, hard links, holes, devices. n.Subdot may be empty: the default one. What is in the subdot under
// other names stays; a name that exists on both sides is a Conflict before anything is copied.
func (d *Dots) Import(ctx context.Context, n Name, dir string, progress func(Progress)) (*ImportResult, error) {
	return nil, pending()
}

// Branches returns a dot's branches, by name.
func (d *Dots) Branches(ctx context.Context, n Name) ([]Branch, error) { return nil, pending() }

// Checkout makes a branch the current one. With create the branch is made, at the commit of the branch that was current.
// Each branch has its own working copy, so nothing uncommitted moves or is lost.
func (d *Dots) Checkout(ctx context.Context, n Name, branch string, create bool) error {
	return pending()
}

// DeleteBranch removes a branch with its working copy. The current one: Conflict.
func (d *Dots) DeleteBranch(ctx context.Context, n Name, branch string) error { return pending() }

// Reset moves a branch to a commit and shows it in the working copy, under live mounts. A dirty working copy is refused
// unless hard.
func (d *Dots) Reset(ctx context.Context, n Name, rev string, hard bool) (*ResetResult, error) {
	return nil, pending()
}

// Restore brings back one subdot or path as a commit has it and leaves the rest of the working copy.
func (d *Dots) Restore(ctx context.Context, n Name, rev, path string) error { return pending() }

// Tags returns a dot's tags, by name.
func (d *Dots) Tags(ctx context.Context, n Name) ([]Tag, error) { return nil, pending() }

// CreateTag gives a commit a fixed name. It exists already: Conflict.
func (d *Dots) CreateTag(ctx context.Context, n Name, tag, rev string) (*Tag, error) {
	return nil, pending()
}

// DeleteTag removes a tag.
func (d *Dots) DeleteTag(ctx context.Context, n Name, tag string) error { return pending() }
