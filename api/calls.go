package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
)

// call is Call with the types of one operation.
func call[Result any](ctx context.Context, c *Client, op Op, request any, h Handlers) (Result, error) {
	var result Result
	err := c.Call(ctx, op, request, &result, h)
	return result, err
}

// items returns handlers that decode each item as a T.
func items[T any](fn func(T) error) Handlers {
	return Handlers{Item: func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("decode the server's reply: %w", err)
		}
		return fn(v)
	}}
}

// Version asks what the server is.
func (c *Client) Version(ctx context.Context) (VersionResult, error) {
	return call[VersionResult](ctx, c, OpVersion, Empty{}, Handlers{})
}

// Server asks for the state of the server.
func (c *Client) Server(ctx context.Context) (ServerResult, error) {
	return call[ServerResult](ctx, c, OpServer, Empty{}, Handlers{})
}

// Stop asks the server to end; it has unmounted everything when this returns, and ends right after.
func (c *Client) Stop(ctx context.Context, req StopRequest) error {
	_, err := call[Empty](ctx, c, OpStop, req, Handlers{})
	return err
}

// Init creates a dot.
func (c *Client) Init(ctx context.Context, req InitRequest) (DotResult, error) {
	return call[DotResult](ctx, c, OpInit, req, Handlers{})
}

// Find checks that a dot exists and returns its name as dm writes it.
func (c *Client) Find(ctx context.Context, req DotRequest) (DotResult, error) {
	return call[DotResult](ctx, c, OpFind, req, Handlers{})
}

// Path asks for a host path.
func (c *Client) Path(ctx context.Context, req PathRequest) (PathResult, error) {
	return call[PathResult](ctx, c, OpPath, req, Handlers{})
}

// List asks for all dots.
func (c *Client) List(ctx context.Context) (ListResult, error) {
	return call[ListResult](ctx, c, OpList, Empty{}, Handlers{})
}

// Status asks for the state of a dot's working copy.
func (c *Client) Status(ctx context.Context, req DotRequest) (StatusResult, error) {
	return call[StatusResult](ctx, c, OpStatus, req, Handlers{})
}

// Commit commits all subdots of a dot at one instant.
func (c *Client) Commit(ctx context.Context, req CommitRequest, progress func(Progress)) (CommitResult, error) {
	return call[CommitResult](ctx, c, OpCommit, req, Handlers{Progress: progress})
}

// Log calls fn with each commit of a history, oldest first.
func (c *Client) Log(ctx context.Context, req LogRequest, fn func(Commit) error) error {
	_, err := call[Empty](ctx, c, OpLog, req, items(fn))
	return err
}

// Show asks for one commit.
func (c *Client) Show(ctx context.Context, req RevisionRequest) (ShowResult, error) {
	return call[ShowResult](ctx, c, OpShow, req, Handlers{})
}

// Diff calls fn with each changed path.
func (c *Client) Diff(ctx context.Context, req DiffRequest, fn func(Change) error) error {
	_, err := call[Empty](ctx, c, OpDiff, req, items(fn))
	return err
}

// Cat writes the bytes of a committed file to w.
func (c *Client) Cat(ctx context.Context, req CatRequest, w io.Writer) error {
	return c.Copy(ctx, OpCat, req, w, nil)
}

// Branches asks for a dot's branches.
func (c *Client) Branches(ctx context.Context, req DotRequest) (BranchesResult, error) {
	return call[BranchesResult](ctx, c, OpBranches, req, Handlers{})
}

// DeleteBranch deletes a branch that is not the current one.
func (c *Client) DeleteBranch(ctx context.Context, req BranchRequest) error {
	_, err := call[Empty](ctx, c, OpDeleteBranch, req, Handlers{})
	return err
}

// Checkout switches a dot to a branch.
func (c *Client) Checkout(ctx context.Context, req CheckoutRequest) (CheckoutResult, error) {
	return call[CheckoutResult](ctx, c, OpCheckout, req, Handlers{})
}

// Reset takes a branch back to a commit.
func (c *Client) Reset(ctx context.Context, req ResetRequest) (ResetResult, error) {
	return call[ResetResult](ctx, c, OpReset, req, Handlers{})
}

// Restore brings committed paths back.
func (c *Client) Restore(ctx context.Context, req RestoreRequest) (RestoreResult, error) {
	return call[RestoreResult](ctx, c, OpRestore, req, Handlers{})
}

// Tags asks for a dot's tags.
func (c *Client) Tags(ctx context.Context, req DotRequest) (TagsResult, error) {
	return call[TagsResult](ctx, c, OpTags, req, Handlers{})
}

// Tag names a commit.
func (c *Client) Tag(ctx context.Context, req TagRequest) (Tag, error) {
	return call[Tag](ctx, c, OpTag, req, Handlers{})
}

// DeleteTag deletes a tag; its commit stays.
func (c *Client) DeleteTag(ctx context.Context, req TagRequest) error {
	_, err := call[Empty](ctx, c, OpDeleteTag, req, Handlers{})
	return err
}

// Mount shows a dot, subdot or commit at a path.
func (c *Client) Mount(ctx context.Context, req MountRequest) (Mount, error) {
	return call[Mount](ctx, c, OpMount, req, Handlers{})
}

// Unmount takes away what Mount made.
func (c *Client) Unmount(ctx context.Context, req UnmountRequest) error {
	_, err := call[Empty](ctx, c, OpUnmount, req, Handlers{})
	return err
}

// Mounts asks for what Mount made.
func (c *Client) Mounts(ctx context.Context) (MountsResult, error) {
	return call[MountsResult](ctx, c, OpMounts, Empty{}, Handlers{})
}

// ShowDot asks for everything about a dot.
func (c *Client) ShowDot(ctx context.Context, req DotRequest) (ShowDotResult, error) {
	return call[ShowDotResult](ctx, c, OpShowDot, req, Handlers{})
}

// DeleteDot deletes a dot with all its branches and commits.
func (c *Client) DeleteDot(ctx context.Context, req DotRequest) error {
	_, err := call[Empty](ctx, c, OpDeleteDot, req, Handlers{})
	return err
}

// RenameDot renames a dot.
func (c *Client) RenameDot(ctx context.Context, req RenameDotRequest) (DotResult, error) {
	return call[DotResult](ctx, c, OpRenameDot, req, Handlers{})
}

// Import copies a directory into a subdot.
func (c *Client) Import(ctx context.Context, req ImportRequest, progress func(Progress)) (ImportResult, error) {
	return call[ImportResult](ctx, c, OpImport, req, Handlers{Progress: progress})
}

// Export writes a tar archive of a commit to w.
func (c *Client) Export(ctx context.Context, req ExportRequest, w io.Writer) (r ExportResult, err error) {
	err = c.Copy(ctx, OpExport, req, w, &r)
	return r, err
}

// GC frees what nothing reaches.
func (c *Client) GC(ctx context.Context, progress func(Progress)) (GCResult, error) {
	return call[GCResult](ctx, c, OpGC, Empty{}, Handlers{Progress: progress})
}

// Fsck verifies the store.
func (c *Client) Fsck(ctx context.Context, req FsckRequest, progress func(Progress)) (FsckResult, error) {
	return call[FsckResult](ctx, c, OpFsck, req, Handlers{Progress: progress})
}

// Restart restarts the containers that lost their volumes when an earlier server ended.
func (c *Client) Restart(ctx context.Context) (RestartResult, error) {
	return call[RestartResult](ctx, c, OpRestart, Empty{}, Handlers{})
}
