package causal

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// State is what a ring's files look like, by path relative to the dot.
type State map[string]File

// File is what a step may leave in a file.
type File struct {
	Dir  bool
	Size int64
	Sec  int64  // modification time
	Step []byte // attribute user.step
	Data []byte
}

// sparse are the files whose size counts, and whose content is a hole.
func sparse(name string) bool {
	return path.Base(name) == Grow.String() || path.Base(name) == Shrink.String()
}

// LoadDir reads the state of all rings in a directory that shows a dot.
func LoadDir(root string) (State, error) {
	state := make(State)
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		f := File{Dir: e.IsDir(), Size: info.Size(), Sec: info.ModTime().Unix()}
		if !f.Dir && !sparse(rel) {
			if f.Data, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		value := make([]byte, 64)
		switch n, err := unix.Getxattr(p, "user.step", value); {
		case err == nil:
			f.Step = value[:n]
		case !errors.Is(err, unix.ENODATA):
			return &fs.PathError{Op: "getxattr", Path: p, Err: err}
		}
		state[rel] = f
		return nil
	})
	return state, err
}

// LoadTar reads the state from a tar archive in PAX format.
func LoadTar(r io.Reader) (State, error) {
	state := make(State)
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return state, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		f := File{Dir: h.Typeflag == tar.TypeDir, Size: h.Size, Sec: h.ModTime.Unix()}
		if v, ok := h.PAXRecords["SCHILY.xattr.user.step"]; ok {
			f.Step = []byte(v)
		}
		if h.Typeflag == tar.TypeReg && !sparse(name) {
			if f.Data, err = io.ReadAll(t); err != nil {
				return nil, err
			}
		}
		state[name] = f
	}
}
