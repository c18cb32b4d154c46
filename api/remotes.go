package api

import (
	"context"
	"time"
)

// Remote is a remote as the client's config has it. It goes with each request that needs one: the server keeps no remotes,
// and so no keys, but those that lazy dots read from.
type Remote struct {
	Name        string `json:"name"`
	URL         string `json:"url"`
	Key         string `json:"key,omitempty"`         // secret
	Fingerprint string `json:"fingerprint,omitempty"` // of a hub's certificate that is not signed by an authority
}

// ProbeRequest asks what an address is.
type ProbeRequest struct {
	URL string `json:"url"`
}

// ProbeResult says what an address is, before a key is known.
type ProbeResult struct {
	Kind        string `json:"kind"` // directory, s3 or hub
	User        string `json:"user,omitempty"`
	NeedsKey    bool   `json:"needs_key"`
	Fingerprint string `json:"fingerprint,omitempty"` // of a certificate that the system does not trust
}

// CheckRemoteRequest asks whether a remote is there and takes its key.
type CheckRemoteRequest struct {
	Remote Remote `json:"remote"`
}

// RemoteDotsRequest asks for the dots at a remote.
type RemoteDotsRequest struct {
	Remote Remote `json:"remote"`
}

// RemoteDeleteRequest asks for a dot at a remote to be deleted there.
type RemoteDeleteRequest struct {
	Remote Remote `json:"remote"`
	Dot    string `json:"dot"` // namespace/dot
}

// RemoteDotsResult is the dots at a remote that the user may see.
type RemoteDotsResult struct {
	Dots []RemoteDot `json:"dots"`
}

// RemoteDot is a dot at a remote.
type RemoteDot struct {
	Name     string   `json:"name"` // namespace/dot
	ReadOnly bool     `json:"read_only"`
	Branches []Branch `json:"branches"`
	Tags     []Tag    `json:"tags"`
}

// SharesRequest asks who has access to a dot at a hub; with a User it changes that.
type SharesRequest struct {
	Remote Remote `json:"remote"`
	Dot    string `json:"dot"` // namespace/dot
	User   string `json:"user,omitempty"`
	Access string `json:"access,omitempty"` // none, read or write
}

// SharesResult is who has access to a dot beside its owner.
type SharesResult struct {
	Shares []Share `json:"shares"`
}

// Share is what a user may do with another's dot.
type Share struct {
	User   string `json:"user"` // * is everyone
	Access string `json:"access"`
}

// UpstreamRequest sets a dot's counterpart at a remote.
type UpstreamRequest struct {
	Dot    string `json:"dot"`
	Remote string `json:"remote"` // its name
	Name   string `json:"name"`   // namespace/dot there
}

// Upstream is a dot's counterpart at a remote.
type Upstream struct {
	Remote string `json:"remote"`
	Name   string `json:"name"`
}

// PushRequest sends branches and tags to a remote. Items of the reply: Travel.
type PushRequest struct {
	Remote Remote `json:"remote"`
	Dot    string `json:"dot"`              // [namespace/]dot[@branch]
	Branch string `json:"branch,omitempty"` // "": that of Dot, or the current one
	Name   string `json:"name,omitempty"`   // namespace/dot there; "": the upstream, or a name like the dot's
	All    bool   `json:"all"`              // all branches and tags
	Force  bool   `json:"force"`            // also where commits there are given up, if they were seen
	Stash  bool   `json:"stash"`            // keep what has diverged as another branch there
}

// PullRequest fetches branches and tags, and moves the dot's own forward. Items of the reply: Travel.
type PullRequest struct {
	Remote   Remote `json:"remote"`
	Dot      string `json:"dot"`
	Branch   string `json:"branch,omitempty"`
	Name     string `json:"name,omitempty"`
	All      bool   `json:"all"`      // all branches and tags that are there
	Stash    bool   `json:"stash"`    // keep what has diverged here as another branch
	Restart  bool   `json:"restart"`  // stop the containers that use the branch, and start them again
	Complete bool   `json:"complete"` // also fetch what a lazy clone has left behind
}

// CloneRequest makes a dot of one at a remote. Items of the reply: Travel.
type CloneRequest struct {
	Remote Remote `json:"remote"`
	Name   string `json:"name"`             // namespace/dot there
	Branch string `json:"branch,omitempty"` // "": all of them
	Local  string `json:"local,omitempty"`  // name here; "": the dot's there
	Lazy   bool   `json:"lazy"`             // data comes when it is read
	Cache  string `json:"cache,omitempty"`  // "writeback" or "through"; "": the server chooses
}

// Travel is one thing that a transfer has to tell.
type Travel struct {
	// The first item says what goes where; both are empty in the others.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`

	Ref    string `json:"ref,omitempty"` // "branch master" or "tag v1"
	Did    string `json:"did,omitempty"` // see the constants
	Old    string `json:"old,omitempty"` // commit id
	New    string `json:"new,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// What became of a ref.
const (
	DidMove    = "moved"
	DidMake    = "made"
	DidNothing = "up to date"
	DidAhead   = "ahead"   // of the remote: nothing to pull
	DidStash   = "kept as" // Detail: under which name what diverged is kept
	DidClash   = "clash"   // a tag that stands for another commit at the other side; it was left alone
)

// TransferResult says what has traveled.
type TransferResult struct {
	Dot     string `json:"dot"`    // here
	Remote  string `json:"remote"` // REMOTE:NAMESPACE/DOT
	Branch  string `json:"branch"` // of the figures below; the current one of a clone
	Head    string `json:"head"`   // of Branch
	Moved   int    `json:"moved"`  // refs that were moved or made
	Bytes   int64  `json:"bytes"`  // over the wire, packs and records
	Size    int64  `json:"size"`   // of all files of the commits at the refs' tips, the largest
	Objects int64  `json:"objects"`
	Total   int64  `json:"total_objects"` // of that commit; 0: not counted
	Packs   int64  `json:"packs"`         // sent
	Commits int64  `json:"commits"`       // that traveled
	Lazy    bool   `json:"lazy,omitempty"`

	Restarted []string `json:"restarted,omitempty"` // containers
}

// TransfersResult is what is on its way.
type TransfersResult struct {
	Transfers []Transfer `json:"transfers"`
}

// Transfer is one transfer that runs.
type Transfer struct {
	ID      string    `json:"id"`
	Verb    string    `json:"verb"` // push, pull or clone
	Dot     string    `json:"dot"`
	Remote  string    `json:"remote"`
	Ref     string    `json:"ref,omitempty"`
	Started time.Time `json:"started"`
	Done    int64     `json:"done"`  // bytes, unpacked
	Total   int64     `json:"total"` // as far as known
	Wire    int64     `json:"wire"`  // bytes over the wire
}

// ProbeRemote asks what an address is.
func (c *Client) ProbeRemote(ctx context.Context, req ProbeRequest) (ProbeResult, error) {
	return call[ProbeResult](ctx, c, OpProbeRemote, req, Handlers{})
}

// CheckRemote asks whether a remote is there and takes its key.
func (c *Client) CheckRemote(ctx context.Context, req CheckRemoteRequest) error {
	_, err := call[Empty](ctx, c, OpCheckRemote, req, Handlers{})
	return err
}

// RemoteDots asks for the dots at a remote.
func (c *Client) RemoteDots(ctx context.Context, req RemoteDotsRequest) (RemoteDotsResult, error) {
	return call[RemoteDotsResult](ctx, c, OpRemoteDots, req, Handlers{})
}

// DeleteRemoteDot deletes a dot at a remote.
func (c *Client) DeleteRemoteDot(ctx context.Context, req RemoteDeleteRequest) error {
	_, err := call[Empty](ctx, c, OpRemoteDelete, req, Handlers{})
	return err
}

// Shares asks for, or changes, who has access to a dot at a hub.
func (c *Client) Shares(ctx context.Context, req SharesRequest) (SharesResult, error) {
	return call[SharesResult](ctx, c, OpShares, req, Handlers{})
}

// SetUpstream sets a dot's counterpart at a remote.
func (c *Client) SetUpstream(ctx context.Context, req UpstreamRequest) error {
	_, err := call[Empty](ctx, c, OpSetUpstream, req, Handlers{})
	return err
}

// Push sends branches and tags to a remote.
func (c *Client) Push(ctx context.Context, req PushRequest, progress func(Progress), tell func(Travel) error) (TransferResult, error) {
	return transfer(ctx, c, OpPush, req, progress, tell)
}

// Pull fetches branches and tags from a remote.
func (c *Client) Pull(ctx context.Context, req PullRequest, progress func(Progress), tell func(Travel) error) (TransferResult, error) {
	return transfer(ctx, c, OpPull, req, progress, tell)
}

// Clone makes a dot of one at a remote.
func (c *Client) Clone(ctx context.Context, req CloneRequest, progress func(Progress), tell func(Travel) error) (TransferResult, error) {
	return transfer(ctx, c, OpClone, req, progress, tell)
}

func transfer(ctx context.Context, c *Client, op Op, req any, progress func(Progress), tell func(Travel) error) (TransferResult, error) {
	h := items(tell)
	h.Progress = progress
	return call[TransferResult](ctx, c, op, req, h)
}

// Transfers asks what is on its way.
func (c *Client) Transfers(ctx context.Context) (TransfersResult, error) {
	return call[TransfersResult](ctx, c, OpTransfers, Empty{}, Handlers{})
}
