package daemon

import (
	"os"
	"sync"

	"dm/internal/errs"
)

// maxLog is the size at which the log begins anew; what it was is kept once, as dm.log.1.
const maxLog = 8 << 20

// rotating is a log file of bounded size. It is safe for concurrent use.
type rotating struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(path string) (*rotating, error) {
	r := &rotating{path: path}
	if err := r.open(); err != nil {
		return nil, errs.New(errs.KindOf(err), "open the log: %w", err)
	}
	return r, nil
}

func (r *rotating) open() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, info.Size()
	return nil
}

// Write appends one record.
func (r *rotating) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size+int64(len(p)) > maxLog && r.size > 0 {
		// Where the disk refuses, the log goes on in the file it has: better too long than lost.
		old := r.file
		if os.Rename(r.path, r.path+".1") == nil && r.open() == nil {
			old.Close()
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

// Close closes the file.
func (r *rotating) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Close()
}
