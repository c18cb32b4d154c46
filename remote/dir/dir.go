// Package dir is a bucket that is a directory, on a local disk or on a share that many machines have mounted.
//
// What is written once is a file of its key's name. What is swapped is a directory of its key's name that holds its
// versions, @1, @2 and so on; the highest one counts. Version n+1 is made by link(2), which fails where there is one, on
// network filesystems, too: whoever makes it has won, and there is no lock that a machine that died could leave behind.
// A version is removed when it is an hour old and not among the last sixteen, so that a machine whose view of the
// directory is stale never takes a removed number for a free one.
package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/errs"
)

const (
	keepVersions = 16
	keepTime     = time.Hour
	// staleTemp is the age from which on a temporary file is one that a killed process has left.
	staleTemp = 24 * time.Hour
)

// Bucket is a directory. It is safe for concurrent use.
type Bucket struct {
	root string
}

// Open returns the bucket in the directory at path, which must be there: NotFound, so that a share that is not mounted is
// not taken for an empty one.
func Open(path string) (*Bucket, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.WithHint(errs.New(errs.NotFound, "directory %s does not exist", path),
			"make it, or mount the share that it is on")
	}
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "open remote %s: %w", path, err)
	}
	if !st.IsDir() {
		return nil, errs.New(errs.Usage, "%s is no directory", path)
	}
	return &Bucket{root: path}, nil
}

// Close does nothing: no file is kept open.
func (b *Bucket) Close() error { return nil }

// String returns the path.
func (b *Bucket) String() string { return b.root }

func (b *Bucket) path(key string) string { return filepath.Join(b.root, filepath.FromSlash(key)) }

// Get returns a file, or the last version of what was swapped.
func (b *Bucket) Get(ctx context.Context, key string, limit int64) ([]byte, string, error) {
	path, tag := b.path(key), "file"
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		var n uint64
		if n, err = lastVersion(path); err == nil && n == 0 {
			err = fs.ErrNotExist
		}
		tag = strconv.FormatUint(n, 10)
		path = filepath.Join(path, "@"+tag)
	}
	if err != nil {
		return nil, "", wrap("read", key, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", wrap("read", key, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, "", wrap("read", key, err)
	}
	if int64(len(data)) > limit {
		return nil, "", errs.New(errs.Damaged, "read %s: more than %d bytes", key, limit)
	}
	return data, tag, ctx.Err()
}

// GetNewer returns a later version than that of the tag.
func (b *Bucket) GetNewer(ctx context.Context, key, tag string, limit int64) ([]byte, string, error) {
	if tag != "" {
		if n, err := lastVersion(b.path(key)); err == nil && strconv.FormatUint(n, 10) == tag {
			return nil, tag, ctx.Err()
		}
	}
	return b.Get(ctx, key, limit)
}

// GetRange returns a part of a file.
func (b *Bucket) GetRange(ctx context.Context, key string, off, n int64) ([]byte, error) {
	f, err := os.Open(b.path(key))
	if err != nil {
		return nil, wrap("read", key, err)
	}
	defer f.Close()
	data := make([]byte, n)
	if _, err := f.ReadAt(data, off); errors.Is(err, io.EOF) {
		return nil, errs.New(errs.Damaged, "read %s: it ends before byte %d", key, off+n)
	} else if err != nil {
		return nil, wrap("read", key, err)
	}
	return data, ctx.Err()
}

// Put writes a file durably.
func (b *Bucket) Put(ctx context.Context, key string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path := b.path(key)
	if err := durable.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return wrap("write", key, err)
	}
	if err := durable.WriteFile(path, data, 0o666&^umaskBits); err != nil {
		return wrap("write", key, err)
	}
	return nil
}

// umaskBits is what files are not allowed for others: they are as private as the directory.
const umaskBits = 0o022

// Swap makes the next version, if the last one is that of the tag.
func (b *Bucket) Swap(ctx context.Context, key string, data []byte, tag string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path := b.path(key)
	if err := durable.MkdirAll(path, 0o777); err != nil {
		return wrap("change", key, err)
	}
	n, err := lastVersion(path)
	if err != nil {
		return wrap("change", key, err)
	}
	if tag == "" && n != 0 || tag != "" && tag != strconv.FormatUint(n, 10) {
		return changed(key)
	}
	tmp := filepath.Join(path, "."+rand.Text()+".tmp")
	if err := durable.WriteFile(tmp, data, 0o666&^umaskBits); err != nil {
		return wrap("change", key, err)
	}
	defer os.Remove(tmp)
	err = noReplace(tmp, filepath.Join(path, "@"+strconv.FormatUint(n+1, 10)))
	if errors.Is(err, fs.ErrExist) {
		return changed(key)
	}
	if err != nil {
		return wrap("change", key, err)
	}
	if err := durable.SyncDir(path); err != nil {
		return wrap("change", key, err)
	}
	b.prune(path, n+1)
	return nil
}

func changed(key string) error {
	return errs.New(errs.Conflict, "%s was changed by somebody else", key)
}

// noReplace gives a file a name that nothing has yet, atomically.
func noReplace(old, name string) error {
	err := os.Link(old, name)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// Some filesystems have no hard links.
	switch rerr := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE); {
	case rerr == nil || errors.Is(rerr, fs.ErrExist):
		return rerr
	case errors.Is(rerr, syscall.EINVAL), errors.Is(rerr, syscall.ENOSYS), errors.Is(rerr, syscall.EOPNOTSUPP):
		return errs.WithHint(errs.New(errs.Usage, "the filesystem can neither link nor rename without replacing: %w", err),
			"two pushes at a time could overwrite each other there; use another filesystem, a hub or S3")
	default:
		return err
	}
}

// lastVersion returns the number of the last version in a directory, 0 if there is none.
func lastVersion(path string) (last uint64, err error) {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if n, ok := version(e.Name()); ok {
			last = max(last, n)
		}
	}
	return last, err
}

func version(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, "@")
	n, err := strconv.ParseUint(digits, 10, 63)
	return n, ok && err == nil
}

// prune removes old versions, and what killed processes have left. Where that fails the next one does it.
func (b *Bucket) prune(path string, last uint64) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		age := time.Since(info.ModTime())
		n, ok := version(e.Name())
		if ok && n+keepVersions <= last && age > keepTime || strings.HasPrefix(e.Name(), ".") && age > staleTemp {
			os.Remove(filepath.Join(path, e.Name()))
		}
	}
}

// Remove removes a file.
func (b *Bucket) Remove(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := durable.Remove(b.path(key)); err != nil {
		return wrap("remove", key, err)
	}
	return nil
}

// List walks the directory, the part of it that the prefix leads to. Names that begin with a dot are nobody's.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(key string) error) error {
	top := b.path(prefix[:strings.LastIndex(prefix, "/")+1])
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && path != top {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(b.root, path)
		if err != nil || d.IsDir() {
			return err
		}
		key := filepath.ToSlash(rel)
		if _, ok := version(d.Name()); ok {
			key = filepath.ToSlash(filepath.Dir(rel))
		}
		if !strings.HasPrefix(key, prefix) {
			return nil
		}
		return fn(key)
	})
	if err != nil {
		return fmt.Errorf("list %s: %w", b.root, err)
	}
	return nil
}

func wrap(verb, key string, err error) error {
	return errs.New(errs.KindOf(err), "%s %s: %w", verb, key, err)
}
