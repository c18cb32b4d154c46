package dot

import (
	"time"

	"dm/object"
)

// CacheMode says how the kernel caches a dot's volumes.
type CacheMode string

// The cache modes. The empty one leaves the choice to the server.
const (
	CacheWriteback CacheMode = "writeback" // the kernel's page cache takes the writes
	CacheThrough   CacheMode = "through"   // every write reaches the server before it returns
)

// CreateOptions are the choices for a new dot.
type CreateOptions struct {
	Subdots []string  // made at once; may be empty
	Cache   CacheMode // empty: the server chooses
}

// Upstream is the default counterpart of a dot at a remote.
type Upstream struct {
	Remote string `json:"remote"`
	Name   string `json:"name"` // namespace/dot there
}

// Origin is where what is not here of a lazy dot is read from. It holds a key: it is for nobody's eyes.
type Origin struct {
	Upstream
	URL         string `json:"url"`
	Key         string `json:"key,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
}

// Info is what is known about a dot without looking at its content.
type Info struct {
	ID        string     `json:"id"` // 16 hex digits; survives a rename
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Created   time.Time  `json:"created"`
	Branch    string     `json:"branch"` // the current one
	Branches  []Branch   `json:"branches"`
	Tags      []Tag      `json:"tags"`
	Cache     CacheMode  `json:"cache,omitempty"`
	Upstreams []Upstream `json:"upstreams"`
	Lazy      bool       `json:"lazy,omitempty"` // some of it may still be at the remote that it was cloned from
}

// Branch is a branch of a dot.
type Branch struct {
	Name    string `json:"name"`
	Commit  string `json:"commit"` // id, empty where nothing has been committed
	Current bool   `json:"current"`
}

// Tag is a fixed name for a commit.
type Tag struct {
	Name   string `json:"name"`
	Commit string `json:"commit"`
}

// Listing is a dot's line in `dm list`, for its current branch. The server adds itself and the containers.
type Listing struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"` // as Name.DotName
	Current    bool     `json:"current"`
	Branch     string   `json:"branch"`
	Server     string   `json:"server"`
	Containers []string `json:"containers"`
	Size       uint64   `json:"size"`    // bytes of all regular files
	Commits    uint64   `json:"commits"` // of the branch, back to its root
	Dirty      uint64   `json:"dirty"`   // bytes written since the last commit, in blocks of 4 KiB
	Error      string   `json:"error,omitempty"`
}

// Status says how a branch's working copy differs from its commit.
type Status struct {
	Name    string         `json:"name"` // as Name.DotName
	Branch  string         `json:"branch"`
	Commit  string         `json:"commit"` // id, empty where nothing has been committed
	Size    uint64         `json:"size"`
	Dirty   uint64         `json:"dirty"`   // bytes
	Changed uint64         `json:"changed"` // files and directories
	Local   uint64         `json:"local"`   // bytes in backing files
	Subdots []SubdotStatus `json:"subdots"`
}

// SubdotStatus is one subdot's share of a Status. The server adds the containers.
type SubdotStatus struct {
	Name       string   `json:"name"`
	Size       uint64   `json:"size"`
	Dirty      uint64   `json:"dirty"`
	Changed    uint64   `json:"changed"`
	Containers []string `json:"containers"`
}

// CommitRequest is what the user says about a commit.
type CommitRequest struct {
	Message string
	Author  string
	Meta    map[string]string // the user's key-values; their names start with lowercase characters
	System  map[string]string // dm's own: images and containers of the subdots
	// Frozen is called when the instant of the commit is over and its content is fixed, before it is read and before another
	// commit that is being made is waited for. May be nil.
	Frozen func()
	// Progress is told now and then, never twice at a time, how far chunking is. May be nil.
	Progress func(Progress)
}

// Progress is how far an operation on file content has come.
type Progress struct {
	FilesDone  uint64 `json:"files_done"`
	FilesTotal uint64 `json:"files_total"` // 0: unknown
	BytesDone  uint64 `json:"bytes_done"`
	BytesTotal uint64 `json:"bytes_total"` // 0: unknown
}

// CommitResult says what a commit did and what it cost.
type CommitResult struct {
	ID          object.ID `json:"-"`
	Commit      string    `json:"commit"`       // ID in hex
	Branch      string    `json:"branch"`       // the branch that moved
	PauseMS     float64   `json:"pause_ms"`     // how long a write could wait
	DurationMS  float64   `json:"duration_ms"`  // the whole of it
	DirtyBytes  uint64    `json:"dirty_bytes"`  // size of the changed ranges
	ReadBytes   uint64    `json:"read_bytes"`   // of file content
	StoredBytes uint64    `json:"stored_bytes"` // by which the store grew
	Files       uint64    `json:"files"`        // whose content had changed
	NewObjects  uint64    `json:"new_objects"`
}

// CommitInfo is a commit in a listing.
type CommitInfo struct {
	ID      string            `json:"id"`
	Parents []string          `json:"parents"`
	Author  string            `json:"author"`
	Time    time.Time         `json:"time"`
	Message string            `json:"message"`
	Meta    map[string]string `json:"meta,omitempty"`
	System  map[string]string `json:"system,omitempty"`
	Size    uint64            `json:"size"` // bytes of all regular files
}

// ChangeKind is the sign of a change in `dm diff`.
type ChangeKind string

// The kinds of change.
const (
	Added    ChangeKind = "+"
	Removed  ChangeKind = "-"
	Modified ChangeKind = "M" // content or attributes
	Renamed  ChangeKind = "R" // and perhaps modified
)

// Change is a path that differs between two states.
type Change struct {
	Kind    ChangeKind `json:"kind"`
	Path    string     `json:"path"`               // subdot/path; no leading slash
	OldPath string     `json:"old_path,omitempty"` // of a rename
	// Bytes is the size of an added or removed file and the changed bytes of a modified one.
	Bytes uint64 `json:"bytes"`
}

// SubdotChanges sums up the changes of one subdot.
type SubdotChanges struct {
	Name     string `json:"name"`
	Added    uint64 `json:"added"`
	Removed  uint64 `json:"removed"`
	Modified uint64 `json:"modified"`
	Renamed  uint64 `json:"renamed"`
	Bytes    uint64 `json:"bytes"`
}

// CommitDetail is a commit with what it changed against its first parent.
type CommitDetail struct {
	CommitInfo
	Subdots []SubdotChanges `json:"subdots"`
	Changes []Change        `json:"changes"`
}

// ResetResult says where a branch was and is.
type ResetResult struct {
	Branch    string `json:"branch"`
	From      string `json:"from"` // commit id, empty where nothing had been committed
	To        string `json:"to"`
	Discarded uint64 `json:"discarded_bytes"` // dirty bytes given up
}

// ImportResult says what an import brought in.
type ImportResult struct {
	Files uint64 `json:"files"`
	Dirs  uint64 `json:"dirs"`
	Bytes uint64 `json:"bytes"` // of data; holes are not counted
}
