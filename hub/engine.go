package hub

import (
	"context"
	"io"
	"time"

	"dm/object"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// engine is where a hub keeps what it knows: localEngine on a disk that it has for itself, sharedEngine in a bucket that
// many hubs use. Who may do what is decided before an engine is asked. It is safe for concurrent use.
type engine interface {
	// look calls fn with the accounts as they are at one moment after the call began.
	look(ctx context.Context, fn func(a accounts) error) error
	// change calls fn, which may change the accounts, and stores all that it changed, or nothing if it fails. fn is called
	// again where somebody else changed them meanwhile.
	change(ctx context.Context, fn func(a accounts) error) error

	// refs returns the refs of a dot.
	refs(ctx context.Context, d *dotRecord) (map[string]object.ID, error)
	// move moves a ref of s.own, as remote.Refs says.
	move(ctx context.Context, s *sight, ref string, old, new object.ID) error
	// missing returns those of ids that are nowhere in sight.
	missing(ctx context.Context, s *sight, ids []object.ID) ([]object.ID, error)
	// takeIn takes in a pack: all of it becomes members of s.own, or nothing.
	takeIn(ctx context.Context, s *sight, body io.Reader) (packStats, error)
	// load writes the records of what is wanted and of what will be wanted next, as far as they are members of d.
	load(ctx context.Context, d *dotRecord, req *hubproto.LoadRequest, out *pack.Writer) error
	// removed is told that a dot is not in the accounts any more.
	removed(d *dotRecord)

	healthy(ctx context.Context) error
	close() error
}

// accounts is users and dots.
type accounts interface {
	user(name string) (*userRecord, error) // nil: there is none
	putUser(name string, u *userRecord) error
	removeUser(name string) error
	eachUser(fn func(name string, u *userRecord) error) error
	dot(name string) (*dotRecord, error) // nil: there is none
	putDot(name string, d *dotRecord) error
	removeDot(name string, d *dotRecord) error
	// eachDot calls fn for the dots of a namespace, or for all of them if it is empty, in order of names.
	eachDot(namespace string, fn func(name string, d *dotRecord) error) error
}

// userRecord is what is known of a user. The key itself is not kept: it has 256 random bits, so that a plain hash of it
// cannot be turned back.
type userRecord struct {
	Hash    []byte    `json:"hash"` // SHA-256 of the key
	Created time.Time `json:"created"`
	Keyed   time.Time `json:"keyed"` // when the key was made
}

// dotRecord is what is known of a dot beside its content. A dot that is deleted and made again has another id.
type dotRecord struct {
	ID      string                     `json:"id"`
	Created time.Time                  `json:"created"`
	Public  bool                       `json:"public,omitempty"`
	Shares  map[string]hubproto.Access `json:"shares,omitempty"`
}

// sight is what an asker sees.
type sight struct {
	own    *dotRecord   // the dot in question
	others []*dotRecord // other dots that the asker may read: what they have need not be sent again
	// still fails if the asker may not write to own any more, or if it is gone. It is asked before anything is changed.
	still func(ctx context.Context) error
}

// packStats says what taking in a pack did.
type packStats struct {
	Objects int   // in the pack
	Bytes   int64 // of the pack's records
	Adopted int   // objects of other dots that became members
}
