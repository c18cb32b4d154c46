package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// page is the unit in which changed content is found: what the databases and the kernel write.
const page = 4096

// changes is what makes a tree equal to another.
type changes struct {
	files int   // whose content changed
	bytes int64 // in whole pages
}

// change makes the tree at dir, which equals old, equal to tree now: it writes only the pages that differ, in place, as
// the databases did. Owners and modes are those of the copies, which nothing here looks at.
func change(ctx context.Context, dir, old, now string) (changes, error) {
	var c changes
	err := filepath.WalkDir(now, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(now, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		n, err := changeFile(to, filepath.Join(old, rel), path)
		if n > 0 {
			c.files++
			c.bytes += n
		}
		return err
	})
	if err != nil {
		return c, fmt.Errorf("change %s: %w", dir, err)
	}
	return c, removeExtra(dir, old, now)
}

func changeFile(to, old, now string) (n int64, err error) {
	src, err := os.Open(now)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	prev, err := os.Open(old)
	if errors.Is(err, fs.ErrNotExist) {
		prev, err = os.Open(os.DevNull)
	}
	if err != nil {
		return 0, err
	}
	defer prev.Close()
	var dst *os.File // opened when something differs: an untouched file stays untouched
	defer func() {
		if dst != nil {
			err = errors.Join(err, dst.Close())
		}
	}()
	open := func() error {
		if dst == nil {
			dst, err = os.OpenFile(to, os.O_RDWR|os.O_CREATE, 0o600)
		}
		return err
	}
	a, b := make([]byte, 256*page), make([]byte, 256*page)
	var size int64
	for {
		rn, err := io.ReadFull(src, b)
		pn, perr := io.ReadFull(prev, a)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF || perr != nil && perr != io.EOF && perr != io.ErrUnexpectedEOF {
			return n, errors.Join(err, perr)
		}
		for at := 0; at < rn; at += page {
			end := min(at+page, rn)
			if end <= pn && bytes.Equal(a[at:end], b[at:end]) {
				continue
			}
			if err := open(); err != nil {
				return n, err
			}
			if _, err := dst.WriteAt(b[at:end], size+int64(at)); err != nil {
				return n, err
			}
			n += page
		}
		size += int64(rn)
		if rn < len(b) {
			break
		}
	}
	was, err := prev.Stat()
	if err != nil {
		return n, err
	}
	if was.Mode().IsRegular() && was.Size() == size {
		return n, nil
	}
	if err := open(); err != nil {
		return n, err
	}
	return max(n, 1), dst.Truncate(size)
}

// removeExtra removes what is in old but not in now.
func removeExtra(dir, old, now string) error {
	return filepath.WalkDir(old, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(old, path)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Join(now, rel)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Remove(filepath.Join(dir, rel)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// same compares the regular files of two trees.
func same(ctx context.Context, a, b string) error {
	n := 0
	err := filepath.WalkDir(a, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(a, path)
		if err != nil {
			return err
		}
		n++
		return sameFile(path, filepath.Join(b, rel))
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("%s holds no files", a)
	}
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", a, b, err)
	}
	return nil
}

func sameFile(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	ba, bb := make([]byte, 256*page), make([]byte, 256*page)
	for {
		na, erra := io.ReadFull(fa, ba)
		nb, errb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return fmt.Errorf("%s differs", b)
		}
		if erra != nil || errb != nil {
			if (erra == io.EOF || erra == io.ErrUnexpectedEOF) && (errb == io.EOF || errb == io.ErrUnexpectedEOF) {
				return nil
			}
			return errors.Join(erra, errb)
		}
	}
}
