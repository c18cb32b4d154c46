// Package workcopy is the live, uncommitted content of one branch: all its subdots, as a filesystem, with the ability to
// freeze them at one instant while writers go on.
//
// A working copy is a commit plus an overlay. The commit's trees and chunks stay in the store and are read when first
// needed, so a working copy of any size exists at once. The overlay holds what differs or has been touched:
//
//	names     each directory is its committed tree plus a map of the names that changed
//	inodes    attributes of changed files and directories
//	blocks    per file, two sets of 4 KiB blocks: dirty (changed since the commit) and, while a file is not
//	          complete, local (its bytes are in the backing file and no longer come from the store)
//
// File bytes are in backing files, one per inode, on the host's filesystem: it gives durability, page cache and extents.
// Names, attributes and block sets are in memory and in a journal that is written before an operation is answered, so
// killing the server loses nothing; fsync syncs what the journal holds for a file, so power loss loses nothing that was
// synced.
//
// The directory of a working copy:
//
//	head             which journal and data generation count (written atomically)
//	journal/N        records since snapshot N; N starts with a dump of the overlay
//	data/G/xx/INO    backing files of generation G; a reset starts a new generation
//	undo             old blocks saved by copy-before-write while a commit reads (unlinked)
package workcopy

import (
	"context"
	"log/slog"
	"time"

	"dm/object"
)

// BlockSize is the unit in which changes and presence are tracked, in bytes.
const BlockSize = 4096

// NodeID is the number by which the kernel knows an inode. The root is 1. It is the inode number with the generation of
// the working copy in the bits above GenerationShift, so that what a reset replaces appears as new inodes.
type NodeID uint64

// RootID is the node of a working copy's top directory, whose directories are the subdots.
const RootID NodeID = 1

// GenerationShift is where a NodeID's generation begins.
const GenerationShift = 40

// Time is a point in time as stat(2) has it.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Attr is what stat(2) says of an inode.
type Attr struct {
	Ino                 uint64
	Mode                uint32 // type and permissions
	Nlink               uint32
	UID, GID            uint32
	Rdev                uint32
	Size                uint64
	Blocks              uint64 // of 512 bytes
	Atime, Mtime, Ctime Time
}

// AttrChange says which attributes to set; nil fields stay.
type AttrChange struct {
	Mode         *uint32 // permission bits
	UID, GID     *uint32
	Size         *uint64
	Atime, Mtime *Time
	Ctime        *Time // from a kernel that keeps times itself (writeback cache)
	KillPriv     bool  // clear set-user-ID and set-group-ID as a write or chown by an unprivileged process does
	// Late marks times that a caching kernel hands over some time after the write that caused them. They do not make a
	// file dirty that has been committed since.
	Late bool
	// Pass lets a truncation pass the gate. The kernel holds back a file's writeback until a truncation is answered, so
	// one that waited at the gate would keep the flush behind the gate from ending.
	Pass bool
}

// NewInode describes an inode to be made.
type NewInode struct {
	Mode     uint32 // type and permissions, umask already applied
	UID, GID uint32 // GID gives way to the directory's where that has the set-group-ID bit
	Rdev     uint32
	Target   string // of a symlink
}

// DirEntry is one name of a directory listing.
type DirEntry struct {
	Name   string
	Cookie uint64 // resume the listing after this entry with this
	Ino    uint64
	Type   uint32 // as in Attr.Mode
}

// RangeKind says what Seek looks for.
type RangeKind uint8

// The kinds.
const (
	Data RangeKind = iota // SEEK_DATA
	Hole                  // SEEK_HOLE
)

// StatFS is what statfs(2) says of the filesystem that holds the backing files.
type StatFS struct {
	BlockSize                       uint32
	Blocks, BlocksFree, BlocksAvail uint64
	Files, FilesFree                uint64
	NameLen                         uint32
}

// Kernel is what a freeze needs of the mount that shows a working copy with the kernel's writeback cache, where a write(2)
// returns before the server hears of it. A working copy without a mount, or with a write-through one, needs none of it.
type Kernel interface {
	// Flush has the kernel write out what it holds back, while writers go on, and shrinks the set of files that Recall
	// and FlushRecent have to visit. Called before the gate closes.
	Flush(ctx context.Context) error
	// Recall takes back the attribute leases of all files that may be written, so that the next write(2) on each asks
	// for attributes and waits at the gate. Called behind the closed gate; it takes no inode lock.
	Recall(ctx context.Context) error
	// FlushRecent writes out the files that may have become dirty since Flush began. Called behind the closed gate.
	FlushRecent(ctx context.Context) error
	// Invalidate makes the kernel forget names of a directory and what is behind them. Never called behind the gate.
	Invalidate(dir NodeID, names []string) error
}

// Config is what a working copy needs from outside.
type Config struct {
	Source object.Source    // committed objects
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil: nothing is logged
	Files  *OpenFiles       // shared by all working copies of the process; nil: this one has its own
	// ReadOnly refuses all changes with EROFS: a commit, mounted to be looked at.
	ReadOnly bool

	tick time.Duration // of the background work; 0: syncEvery. For tests.
	// pause is called at each moment of a frozen file's reading, and of the visits to a snapshot's nodes, at which others may
	// change what is read or visited. For tests.
	pause func()
}
