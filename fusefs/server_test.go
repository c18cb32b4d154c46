package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"dm/workcopy"
)

// serve is a server of its own: it mounts a working copy at a directory and serves it until its standard input ends.
func serve(cache, state, dir string) error {
	mode, err := ParseCache(cache)
	if err != nil {
		return err
	}
	ctx := context.Background()
	c, err := workcopy.Create(ctx, filepath.Join(state, "copy"), workcopy.Config{Log: slog.Default()}, [32]byte{}, nil)
	if err != nil {
		return err
	}
	f := NewFlusher(slog.Default())
	defer f.Close()
	m, err := New(ctx, c, dir, Options{Cache: mode, Flusher: f})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	return m.Unmount(ctx)
}
