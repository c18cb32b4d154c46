package api

import (
	"context"
	"time"
)

// KeepRule says which commits of a branch stay: the newest Last, and the newest one of each of the newest Hourly hours, Daily
// days, Weekly weeks and Monthly months (UTC) that have commits.
type KeepRule struct {
	Last    int `json:"last,omitempty"`
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"`
	Monthly int `json:"monthly,omitempty"`
}

// PruneRequest thins out the commits of a dot's current branch.
type PruneRequest struct {
	Dot    string   `json:"dot"`
	Keep   KeepRule `json:"keep"`
	All    bool     `json:"all"` // all branches of the dot
	DryRun bool     `json:"dry_run"`
}

// PruneResult says which commits went and which stayed, the newest first, and what that freed.
type PruneResult struct {
	Branches []string       `json:"branches"`
	Pruned   []PrunedCommit `json:"pruned"`
	Kept     []PrunedCommit `json:"kept"`
	// Freed is the bytes of the disk that the gc afterwards gave back, from whatever source; of a dry run, those that only the
	// commits to be pruned need.
	Freed  int64 `json:"freed"`
	NoRoom int64 `json:"no_room"` // as in GCResult
	DryRun bool  `json:"dry_run"`
}

// PrunedCommit is a commit that a prune looked at.
type PrunedCommit struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Message string    `json:"message"`
	Why     []string  `json:"why,omitempty"` // it stays
}

// AutoCommitRequest sets when a dot is committed by itself.
type AutoCommitRequest struct {
	Dot     string   `json:"dot"`
	Off     bool     `json:"off"`
	Every   string   `json:"every,omitempty"` // as of time.ParseDuration
	IfDirty bool     `json:"if_dirty,omitempty"`
	Keep    KeepRule `json:"keep"`
}

// AutoCommit is how a dot is committed by itself.
type AutoCommit struct {
	Every   string    `json:"every"`
	IfDirty bool      `json:"if_dirty"`
	Keep    KeepRule  `json:"keep"`
	Rule    string    `json:"rule"` // Keep as options
	Next    time.Time `json:"next"`
	Last    time.Time `json:"last"` // zero: not yet
	Commit  string    `json:"commit,omitempty"`
	Error   string    `json:"error,omitempty"` // of the last time
}

// UsageRequest asks for the space of all dots, or of one.
type UsageRequest struct {
	Dot string `json:"dot,omitempty"`
}

// UsageResult is the space that dots take.
type UsageResult struct {
	Dots []DotUsage `json:"dots"`
}

// Space is what something holds, in bytes.
type Space struct {
	Logical int64 `json:"logical"` // of files, by their sizes
	Stored  int64 `json:"stored"`  // in the store, of all that it needs, each object once
	Alone   int64 `json:"alone"`   // of these, what nothing else of its kind needs: freed without it
	Shared  int64 `json:"shared"`  // the rest of them
}

// DotUsage is the space of a dot, compared with all other dots.
type DotUsage struct {
	Name string `json:"name"`
	Space
	Pruned   int           `json:"pruned"` // commits
	Local    int64         `json:"local"`  // of working copies, outside of the store
	Branches []BranchUsage `json:"branches"`
	Tagged   []CommitUsage `json:"tagged"` // commits that only tags lead to
}

// BranchUsage is the space of a branch, compared with all other branches.
type BranchUsage struct {
	Name string `json:"name"`
	Space
	Commits []CommitUsage `json:"commits"` // the newest first
}

// CommitUsage is the space of a commit, compared with all other commits.
type CommitUsage struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Message string    `json:"message"`
	Space
}

// Prune thins out the commits of a branch.
func (c *Client) Prune(ctx context.Context, req PruneRequest, progress func(Progress)) (PruneResult, error) {
	return call[PruneResult](ctx, c, OpPrune, req, Handlers{Progress: progress})
}

// SetAutoCommit sets when a dot is committed by itself.
func (c *Client) SetAutoCommit(ctx context.Context, req AutoCommitRequest) error {
	_, err := call[Empty](ctx, c, OpAutoCommit, req, Handlers{})
	return err
}

// Usage asks for the space of dots.
func (c *Client) Usage(ctx context.Context, req UsageRequest) (UsageResult, error) {
	return call[UsageResult](ctx, c, OpUsage, req, Handlers{})
}
