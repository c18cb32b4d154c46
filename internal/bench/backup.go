package main

import (
	"context"
	"fmt"
	"path/filepath"
)

// keeper keeps versions of one directory of files: restic, borg or dm.
type keeper interface {
	name() string
	// prepare makes an empty store and returns the directory whose content is kept.
	prepare(ctx context.Context) (string, error)
	// keep keeps the directory's content, and returns the cost.
	keep(ctx context.Context) (usage, error)
	// stored is the bytes that everything kept so far takes on disk.
	stored() (int64, error)
	// restores is the ways to get the newest version out. Each returns the directory where it is, and the cost.
	restores() []restore
	// close takes everything away.
	close(ctx context.Context) error
}

type restore struct {
	how string
	do  func(ctx context.Context) (string, usage, error)
}

// keepers returns one of each, in directories of their own.
func keepers(l *lab) []keeper {
	return []keeper{&dmKeeper{lab: l}, &restic{l}, &borg{l}}
}

type restic struct{ *lab }

func (k *restic) name() string { return "restic" }

func (k *restic) prepare(ctx context.Context) (string, error) {
	dir, err := k.mkdir("restic", "files")
	if err != nil {
		return "", err
	}
	_, _, err = k.run(ctx, "", "restic", "-q", "-r", k.root+"/restic/store", "init")
	return dir, err
}

func (k *restic) keep(ctx context.Context) (usage, error) {
	u, _, err := k.run(ctx, k.root+"/restic/files", "restic", "-q", "-r", k.root+"/restic/store", "backup", ".")
	return u, err
}

func (k *restic) stored() (int64, error) { return onDisk(k.root + "/restic/store") }

func (k *restic) restores() []restore {
	return []restore{{"restic restore", func(ctx context.Context) (string, usage, error) {
		to := k.root + "/restic/out"
		u, _, err := k.run(ctx, "", "restic", "-q", "-r", k.root+"/restic/store", "restore", "latest", "--target", to)
		return to, u, err
	}}}
}

func (k *restic) close(context.Context) error { return k.remove(k.root + "/restic") }

type borg struct{ *lab }

func (k *borg) name() string { return "borg" }

func (k *borg) prepare(ctx context.Context) (string, error) {
	dir, err := k.mkdir("borg", "files")
	if err != nil {
		return "", err
	}
	_, _, err = k.run(ctx, "", "borg", "init", "--encryption=none", k.root+"/borg/store")
	return dir, err
}

func (k *borg) keep(ctx context.Context) (usage, error) {
	u, _, err := k.run(ctx, k.root+"/borg/files", "borg", "create", "--compression", "zstd,1", k.root+"/borg/store::{now}", ".")
	return u, err
}

func (k *borg) stored() (int64, error) { return onDisk(k.root + "/borg/store") }

func (k *borg) restores() []restore {
	return []restore{{"borg extract", func(ctx context.Context) (string, usage, error) {
		to, err := k.mkdir("borg", "out")
		if err != nil {
			return "", usage{}, err
		}
		_, last, err := k.run(ctx, "", "borg", "list", "--last", "1", "--short", k.root+"/borg/store")
		if err != nil {
			return "", usage{}, err
		}
		u, _, err := k.run(ctx, to, "borg", "extract", k.root+"/borg/store::"+last[:len(last)-1])
		return to, u, err
	}}}
}

func (k *borg) close(context.Context) error { return k.remove(k.root + "/borg") }

// dmKeeper is a server with one dot, its files written through the volume.
type dmKeeper struct {
	*lab
	server *server
	dir    string
	last   committed
}

func (k *dmKeeper) name() string { return "dm" }

func (k *dmKeeper) prepare(ctx context.Context) (string, error) {
	s, err := k.serve(ctx, "dm")
	if err != nil {
		return "", err
	}
	k.server = s
	k.dir, err = s.create(ctx, "stack", "mariadb", "postgres", "redis")
	return k.dir, err
}

func (k *dmKeeper) keep(ctx context.Context) (usage, error) {
	c, u, err := k.server.commit(ctx, "stack")
	k.last = c
	return u, err
}

func (k *dmKeeper) stored() (int64, error) { return onDisk(filepath.Join(k.server.home, "store")) }

func (k *dmKeeper) restores() []restore {
	return []restore{
		{"dm mount of the commit, cp -a", k.copyOut},
		{"rm everything, dm reset --hard, read every file", k.resetAndRead},
	}
}

func (k *dmKeeper) copyOut(ctx context.Context) (string, usage, error) {
	at, err := k.mkdir("dm", "commit")
	if err != nil {
		return "", usage{}, err
	}
	to := k.root + "/dm/out"
	u, _, err := k.server.dm(ctx, "mount", "stack:"+k.last.ID, at)
	if err != nil {
		return "", u, err
	}
	c, err := k.server.with(func() (usage, error) {
		c, _, err := k.run(ctx, "", "cp", "-a", at, to)
		return c, err
	})
	if err != nil {
		return "", u, err
	}
	d, _, err := k.server.dm(ctx, "umount", at)
	return to, u.plus(c).plus(d), err
}

// resetAndRead removes everything first, so that everything comes from the store. It returns the volume itself.
func (k *dmKeeper) resetAndRead(ctx context.Context) (string, usage, error) {
	for _, sub := range []string{"mariadb", "postgres", "redis"} {
		if _, _, err := k.run(ctx, filepath.Join(k.dir, sub), "find", ".", "-mindepth", "1", "-delete"); err != nil {
			return "", usage{}, err
		}
	}
	u, _, err := k.server.dm(ctx, "reset", "--dot", "stack", "--hard", k.last.ID)
	if err != nil {
		return "", u, err
	}
	c, err := k.server.with(func() (usage, error) {
		c, _, err := readAll(ctx, k.lab, k.dir)
		return c, err
	})
	return k.dir, u.plus(c), err
}

func (k *dmKeeper) close(context.Context) error {
	if err := k.server.close(); err != nil {
		return err
	}
	return k.remove(k.root + "/dm")
}

// readAll reads every file of a tree and returns how many bytes there were.
func readAll(ctx context.Context, l *lab, dir string) (usage, int64, error) {
	// The slash has find look behind a symbolic link, which the path of a dot is.
	u, out, err := l.run(ctx, "", "sh", "-c", "find "+dir+"/ -type f -print0 | xargs -0 cat | wc -c")
	if err != nil {
		return u, 0, err
	}
	var n int64
	if _, err := fmt.Sscan(out, &n); err != nil {
		return u, 0, fmt.Errorf("read what wc says: %w", err)
	}
	if n == 0 {
		return u, 0, fmt.Errorf("no bytes were read of %s", dir)
	}
	return u, n, nil
}
