package api

import "time"

// Op is the name of an operation, the last part of its path.
type Op string

// The operations.
const (
	OpVersion      Op = "version"
	OpServer       Op = "server"
	OpStop         Op = "stop"
	OpInit         Op = "init"
	OpFind         Op = "find"
	OpPath         Op = "path"
	OpList         Op = "list"
	OpStatus       Op = "status"
	OpCommit       Op = "commit"
	OpLog          Op = "log"
	OpShow         Op = "show"
	OpDiff         Op = "diff"
	OpCat          Op = "cat"
	OpBranches     Op = "branches"
	OpDeleteBranch Op = "delete-branch"
	OpCheckout     Op = "checkout"
	OpReset        Op = "reset"
	OpRestore      Op = "restore"
	OpTags         Op = "tags"
	OpTag          Op = "tag"
	OpDeleteTag    Op = "delete-tag"
	OpMount        Op = "mount"
	OpUnmount      Op = "unmount"
	OpMounts       Op = "mounts"
	OpShowDot      Op = "show-dot"
	OpDeleteDot    Op = "delete-dot"
	OpRenameDot    Op = "rename-dot"
	OpImport       Op = "import"
	OpExport       Op = "export"
	OpGC           Op = "gc"
	OpFsck         Op = "fsck"
	OpProbeRemote  Op = "probe-remote"
	OpCheckRemote  Op = "check-remote"
	OpRemoteDots   Op = "remote-dots"
	OpRemoteDelete Op = "remote-delete"
	OpShares       Op = "shares"
	OpSetUpstream  Op = "set-upstream"
	OpPush         Op = "push"
	OpPull         Op = "pull"
	OpClone        Op = "clone"
	OpTransfers    Op = "transfers"
	OpPrune        Op = "prune"
	OpAutoCommit   Op = "auto-commit"
	OpUsage        Op = "usage"
	OpRestart      Op = "restart"
)

// Ops returns all operations, for tests that walk a whole table.
func Ops() []Op {
	return []Op{
		OpVersion, OpServer, OpStop, OpInit, OpFind, OpPath, OpList, OpStatus, OpCommit, OpLog, OpShow, OpDiff, OpCat,
		OpBranches, OpDeleteBranch, OpCheckout, OpReset, OpRestore, OpTags, OpTag, OpDeleteTag, OpMount, OpUnmount,
		OpMounts, OpShowDot, OpDeleteDot, OpRenameDot, OpImport, OpExport, OpGC, OpFsck,
		OpProbeRemote, OpCheckRemote, OpRemoteDots, OpRemoteDelete, OpShares, OpSetUpstream, OpPush, OpPull, OpClone, OpTransfers,
		OpPrune, OpAutoCommit, OpUsage, OpRestart,
	}
}

// Empty is the request or result of an operation that has none.
type Empty struct{}

// VersionResult says what a program is.
type VersionResult struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source, where the build knows it
	Go       string `json:"go"`
}

// ServerResult is the state of a server as a whole.
type ServerResult struct {
	ID      string        `json:"id"` // 16 hex digits, stays with the state directory
	PID     int           `json:"pid"`
	Home    Path          `json:"home"`
	Version VersionResult `json:"version"`
	Started time.Time     `json:"started"`
	Cache   string        `json:"cache"` // "writeback" or "through"
	Why     string        `json:"why,omitempty"`
	Dots    int           `json:"dots"`
	Hidden  []HiddenDot   `json:"hidden"` // what could not be shown when the server started, and is not since
	Mounts  []Mount       `json:"mounts"`
	Store   int64         `json:"store"`   // bytes on disk under store/
	Work    int64         `json:"work"`    // bytes on disk under work/
	Free    int64         `json:"free"`    // bytes free on the filesystem of the state directory
	Reserve int64         `json:"reserve"` // bytes that commits leave free there
	Docker  Docker        `json:"docker"`
}

// HiddenDot is a dot without a path.
type HiddenDot struct {
	Dot string `json:"dot"`
	Why string `json:"why"`
}

// Docker is how the server stands with Docker.
type Docker struct {
	Plugin  string   `json:"plugin"`          // name of the volume driver, "" if it is not served
	Why     string   `json:"why,omitempty"`   // it is not served
	Error   string   `json:"error,omitempty"` // why containers are not known
	Running []string `json:"running"`         // containers that use a dot
	Stale   []string `json:"stale"`           // of these, what lost its volumes when an earlier server ended
}

// RestartResult is the containers that were restarted.
type RestartResult struct {
	Containers []string `json:"containers"`
}

// StopRequest asks the server to end.
type StopRequest struct {
	Force bool `json:"force"` // also when mounts are busy: they are detached
}

// InitRequest creates a dot.
type InitRequest struct {
	Dot     string   `json:"dot"`
	Subdots []string `json:"subdots,omitempty"`
	Cache   string   `json:"cache,omitempty"` // "writeback" or "through"; "": the server chooses
}

// DotResult names a dot in its full form, without the own namespace.
type DotResult struct {
	Dot string `json:"dot"`
}

// PathRequest asks where a dot or subdot is on the host.
type PathRequest struct {
	Name   string `json:"name"` // [namespace/]dot[@branch][.subdot]
	Create bool   `json:"create"`
}

// PathResult is a path on the host.
type PathResult struct {
	Path Path `json:"path"`
}

// ListResult is all dots of a server.
type ListResult struct {
	Server string `json:"server"`
	Dots   []Dot  `json:"dots"`
	Note   string `json:"note,omitempty"` // why containers are not known
}

// Dot is one row of `dm list`. Figures are those of the current branch, in bytes.
type Dot struct {
	Name       string   `json:"name"`
	Branch     string   `json:"branch"`
	Server     string   `json:"server"`
	Containers []string `json:"containers"`
	Size       int64    `json:"size"`
	Commits    int      `json:"commits"`
	Dirty      int64    `json:"dirty"`
	Error      string   `json:"error,omitempty"` // why the figures are not known
}

// DotRequest names the dot that an operation without other arguments acts on.
type DotRequest struct {
	Dot string `json:"dot"`
}

// StatusResult is the state of a dot's current working copy.
type StatusResult struct {
	Dot     string   `json:"dot"`
	Branch  string   `json:"branch"`
	Head    string   `json:"head"` // commit id, empty before the first
	Subdots []Subdot `json:"subdots"`
	Total   Subdot   `json:"total"`
	Note    string   `json:"note,omitempty"` // why containers are not known
}

// Subdot is the state of one subdot, or of all together.
type Subdot struct {
	Name       string   `json:"name"`
	Size       int64    `json:"size"`    // bytes of all files
	Dirty      int64    `json:"dirty"`   // bytes written since the commit
	Changed    int64    `json:"changed"` // files and directories
	Local      int64    `json:"local"`   // bytes that do not come from the store
	Containers []string `json:"containers"`
}

// CommitRequest asks for a commit of a dot's current branch.
type CommitRequest struct {
	Dot     string            `json:"dot"`
	Message string            `json:"message"`
	Author  string            `json:"author"`
	Meta    map[string]string `json:"meta,omitempty"`
	NoHooks bool              `json:"no_hooks,omitempty"` // do not run the hooks of containers
}

// CommitResult says what was committed and what it took.
type CommitResult struct {
	ID       string  `json:"id"`
	Branch   string  `json:"branch"`      // that moved
	Pause    float64 `json:"pause_ms"`    // how long a writer may have waited
	Duration float64 `json:"duration_ms"` // of the whole commit
	Dirty    int64   `json:"dirty_bytes"` // that had changed
	Read     int64   `json:"read_bytes"`  // to chunk them
	Stored   int64   `json:"stored_bytes"`
	Objects  int64   `json:"new_objects"` // added to the store
	Files    int64   `json:"files"`       // whose content had changed
}

// LogRequest asks for the history of a revision. Items of the reply: Commit, oldest first.
type LogRequest struct {
	Dot      string `json:"dot"`
	Revision string `json:"revision"` // "" is HEAD
	Limit    int    `json:"limit"`    // the newest so many; 0 is all
}

// Commit is one commit.
type Commit struct {
	ID      string            `json:"id"`
	Parents []string          `json:"parents"`
	Author  string            `json:"author"`
	Time    time.Time         `json:"time"`
	Message string            `json:"message"`
	Meta    map[string]string `json:"meta,omitempty"`
	System  map[string]string `json:"system,omitempty"` // dm's own notes: images and containers
	Tags    []string          `json:"tags,omitempty"`
}

// RevisionRequest names a revision of a dot.
type RevisionRequest struct {
	Dot      string `json:"dot"`
	Revision string `json:"revision"`
}

// ShowResult is a commit and what it changed against its first parent.
type ShowResult struct {
	Commit  Commit          `json:"commit"`
	Subdots []SubdotChanges `json:"subdots"`
}

// SubdotChanges counts the changes of one subdot.
type SubdotChanges struct {
	Name     string `json:"name"`
	Added    int64  `json:"added"`
	Modified int64  `json:"modified"`
	Removed  int64  `json:"removed"`
	Renamed  int64  `json:"renamed"`
	Bytes    int64  `json:"bytes"` // of added and modified files
}

// DiffRequest compares two states. Items of the reply: Change, in path order.
type DiffRequest struct {
	Dot  string `json:"dot"`
	From string `json:"from"` // "" is HEAD
	To   string `json:"to"`   // "" is the working copy
}

// Change is one changed path.
type Change struct {
	Kind  string `json:"kind"` // "+", "M", "-" or "R"
	Path  Path   `json:"path"`
	Old   Path   `json:"old,omitempty"` // of a rename
	Bytes int64  `json:"bytes"`
}

// CatRequest asks for the bytes of one file of a commit.
type CatRequest struct {
	Dot      string `json:"dot"`
	Revision string `json:"revision"`
	Path     Path   `json:"path"` // begins with the subdot
}

// BranchesResult is the branches of a dot.
type BranchesResult struct {
	Current  string   `json:"current"`
	Branches []Branch `json:"branches"`
}

// Branch is a named pointer to a commit.
type Branch struct {
	Name string `json:"name"`
	Head string `json:"head"` // commit id, empty before the first
}

// BranchRequest names a branch of a dot.
type BranchRequest struct {
	Dot    string `json:"dot"`
	Branch string `json:"branch"`
}

// CheckoutRequest switches a dot to a branch.
type CheckoutRequest struct {
	Dot    string `json:"dot"`
	Branch string `json:"branch"`
	Create bool   `json:"create"` // from the current branch's HEAD
	// NoRestart refuses if containers run that would have to be restarted.
	NoRestart bool `json:"no_restart,omitempty"`
}

// CheckoutResult says what was switched.
type CheckoutResult struct {
	Branch    string   `json:"branch"`
	Head      string   `json:"head"`
	Restarted []string `json:"restarted"`       // containers
	From      string   `json:"from,omitempty"`  // the branch that was current, if it was another
	Users     []string `json:"users,omitempty"` // processes that use files or directories of it, and go on with it; at most ten
}

// ResetRequest takes a dot's current branch back to a commit.
type ResetRequest struct {
	Dot      string `json:"dot"`
	Revision string `json:"revision"`
	Hard     bool   `json:"hard"` // drop what is not committed
	// NoRestart refuses if containers run that would have to be restarted.
	NoRestart bool `json:"no_restart,omitempty"`
}

// ResetResult says where the branch is now.
type ResetResult struct {
	Head      string   `json:"head"`
	Dropped   int64    `json:"dropped"`         // dirty bytes given up
	Restarted []string `json:"restarted"`       // containers
	Users     []string `json:"users,omitempty"` // processes that use files or directories from before; at most ten
}

// RestoreRequest brings one subdot or path of a commit back into the working copy.
type RestoreRequest struct {
	Dot      string `json:"dot"`
	Revision string `json:"revision"`
	Paths    []Path `json:"paths"` // each begins with the subdot
	// NoRestart refuses if containers run that would have to be restarted.
	NoRestart bool `json:"no_restart,omitempty"`
}

// RestoreResult says what restoring took.
type RestoreResult struct {
	Restarted []string `json:"restarted"` // containers
}

// TagsResult is the tags of a dot.
type TagsResult struct {
	Tags []Tag `json:"tags"`
}

// Tag is a name for one commit.
type Tag struct {
	Name   string `json:"name"`
	Commit string `json:"commit"`
}

// TagRequest creates or deletes a tag.
type TagRequest struct {
	Dot      string `json:"dot"`
	Name     string `json:"name"`
	Revision string `json:"revision"` // "" is HEAD
}

// MountRequest shows a dot, subdot or commit at a path of the host.
type MountRequest struct {
	Name     string `json:"name"` // [namespace/]dot[@branch][.subdot]
	Revision string `json:"revision,omitempty"`
	Dir      Path   `json:"dir"`      // absolute
	Create   bool   `json:"create"`   // create a dot that is not there
	ReadOnly bool   `json:"readonly"` // always so with a Revision
}

// UnmountRequest takes a mount away.
type UnmountRequest struct {
	Dir Path `json:"dir"` // absolute
}

// MountsResult is what MountRequests made.
type MountsResult struct {
	Mounts []Mount `json:"mounts"`
}

// Mount is a place of the host where something of dm is to be seen.
type Mount struct {
	Dir      Path   `json:"dir"`
	What     string `json:"what"` // dot@branch.subdot or dot:revision
	ReadOnly bool   `json:"readonly"`
}

// ShowDotResult is everything about one dot.
type ShowDotResult struct {
	Dot
	ID       string   `json:"id"` // 16 hex digits, stays over a rename
	Created  string   `json:"created"`
	Path     Path     `json:"path"`
	Cache    string   `json:"cache"` // "writeback" or "through": what its mounts have
	Head     string   `json:"head"`
	Branches []Branch `json:"branches"`
	Tags     []Tag    `json:"tags"`
	Subdots  []Subdot `json:"subdots"`

	Upstreams  []Upstream  `json:"upstreams"`
	AutoCommit *AutoCommit `json:"auto_commit,omitempty"`

	Note string `json:"note,omitempty"` // why containers are not known
	Lazy string `json:"lazy,omitempty"` // REMOTE:NAMESPACE/DOT that what is not here yet is read from
}

// RenameDotRequest gives a dot a new name.
type RenameDotRequest struct {
	Dot string `json:"dot"`
	To  string `json:"to"`
}

// ImportRequest copies a directory of the host, or a volume of Docker's own, into a subdot.
type ImportRequest struct {
	Dir    Path   `json:"dir"`              // absolute; empty where there is a Volume
	Volume string `json:"volume,omitempty"` // its name
	Name   string `json:"name"`             // dot.subdot
}

// ImportResult says what was copied.
type ImportResult struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// ExportRequest asks for a tar archive of a commit.
type ExportRequest struct {
	Dot      string `json:"dot"`
	Revision string `json:"revision"`
	Subdot   string `json:"subdot,omitempty"` // "" is all of them
}

// ExportResult says what a tar archive does not hold.
type ExportResult struct {
	Sockets int64 `json:"sockets"` // left out: a tar archive has none
}

// GCResult says what was freed.
type GCResult struct {
	Objects int64 `json:"objects"` // removed
	Kept    int64 `json:"kept"`    // objects still there
	Freed   int64 `json:"freed"`   // bytes on disk
	NoRoom  int64 `json:"no_room"` // bytes that could not be freed because the disk is too full to write what lives beside them
	Packs   int   `json:"packs"`   // rewritten or removed
}

// FsckRequest asks for a verification of the store.
type FsckRequest struct {
	Quick bool `json:"quick"` // not every chunk: the index, sizes, trees and commits
	// Repair takes damaged objects out of the index, so that the next commit or pull that has them stores them again.
	Repair bool `json:"repair"`
	// RepairFrom is a remote from which damaged and missing objects are fetched after that; nil: none is.
	RepairFrom *Remote `json:"repair_from,omitempty"`
}

// FsckResult says what was verified and found. Damage is no error of the operation.
type FsckResult struct {
	Objects   int64      `json:"objects"`
	Reachable int64      `json:"reachable"` // objects, from branches and tags
	Bytes     int64      `json:"bytes"`     // of packs
	Packs     int        `json:"packs"`
	Damaged   []Damage   `json:"damaged"`
	Affected  []Affected `json:"affected"`
	Truncated bool       `json:"truncated"` // there is more than these lists say
	PutAside  int64      `json:"put_aside"` // objects taken out of the index by a repair
	Recovered int64      `json:"recovered"` // objects of which a repair found a whole copy
	Fetched   int64      `json:"fetched"`   // objects that a repair got from a remote
}

// Damage is one thing that is wrong in the store.
type Damage struct {
	What   string `json:"what"` // one line
	Pack   string `json:"pack,omitempty"`
	Offset int64  `json:"offset,omitempty"` // in the pack, in bytes
	Object string `json:"object,omitempty"` // id
}

// Affected is what cannot be read in full because of damage.
type Affected struct {
	Name   string `json:"name"` // dot@branch or dot:tag
	Commit string `json:"commit"`
	Path   Path   `json:"path"` // in the commit; empty: the commit itself
	Object string `json:"object"`
}

// Progress says how far a long operation is.
type Progress struct {
	Stage string `json:"stage"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"` // 0: not known
	Bytes bool   `json:"bytes"` // Done and Total are bytes
	// Of a transfer: which of how many branches is on its way.
	Part  int `json:"part,omitempty"`
	Parts int `json:"parts,omitempty"`
}
