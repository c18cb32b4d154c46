package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// target is a filesystem to compare: a directory in it.
type target struct {
	name   string
	dir    string
	server *server // of dm, nil for others
}

// filesystems compares the host's filesystem, a dm volume and other FUSE filesystems.
func filesystems(ctx context.Context, l *lab, r *record) error {
	r.title("The volume as a filesystem")
	targets, err := mountAll(ctx, l)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if err := layout(ctx, l, t); err != nil {
			return err
		}
	}
	for rep := range l.reps {
		for _, j := range fioJobs() {
			l.say("fs: repetition %d of %d: fio %s", rep+1, l.reps, j.name)
			for _, t := range targets {
				if err := fio(ctx, l, r, j, t); err != nil {
					return fmt.Errorf("fio on %s: %w", t.name, err)
				}
			}
		}
	}
	for _, t := range targets {
		if err := os.Remove(filepath.Join(t.dir, "fio")); err != nil {
			return err
		}
	}
	if err := programs(ctx, l, r, targets); err != nil {
		return err
	}
	fsTables(r, targets)
	return nil
}

// mountAll makes the targets that the options name, all on one filesystem of the host.
func mountAll(ctx context.Context, l *lab) ([]target, error) {
	names := strings.Split(l.targets, ",")
	if names[0] != "host" {
		return nil, fmt.Errorf("the first target must be the host, to which all others are compared")
	}
	makers := map[string]func(context.Context, *lab) (target, error){
		"host": hostTarget, "dm": dmTarget, "loopback": loopbackTarget, "overlayfs": overlayTarget, "bindfs": bindTarget,
	}
	var all []target
	for _, name := range names {
		mk := makers[name]
		if mk == nil {
			return nil, fmt.Errorf("no filesystem %q to compare", name)
		}
		t, err := mk(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", name, err)
		}
		t.name = name
		all = append(all, t)
	}
	return all, nil
}

func hostTarget(_ context.Context, l *lab) (target, error) {
	dir, err := l.mkdir("host")
	return target{dir: dir}, err
}

func dmTarget(ctx context.Context, l *lab) (target, error) {
	s, err := l.serve(ctx, "volume")
	if err != nil {
		return target{}, err
	}
	if _, err := s.create(ctx, "fs", "data"); err != nil {
		return target{}, err
	}
	dir, err := s.path(ctx, "fs.data")
	return target{dir: dir, server: s}, err
}

// loopbackTarget is go-fuse's example, built from the module that dm itself uses. The benchmark runs in dm's source.
func loopbackTarget(ctx context.Context, l *lab) (target, error) {
	program := filepath.Join(l.root, "loopback.bin")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/hanwen/go-fuse/v2/example/loopback")
	l.note("go", build.Args[1:]...)
	if out, err := build.CombinedOutput(); err != nil {
		return target{}, fmt.Errorf("build go-fuse's loopback: %w: %s", err, out)
	}
	return l.background(ctx, "loopback", func(backing, at string) []string {
		return []string{program, "-q", "-allow-other", at, backing}
	})
}

func overlayTarget(ctx context.Context, l *lab) (target, error) {
	for _, d := range []string{"lower", "upper", "work"} {
		if _, err := l.mkdir("overlayfs", "backing", d); err != nil {
			return target{}, err
		}
	}
	return l.background(ctx, "overlayfs", func(backing, at string) []string {
		return []string{
			"fuse-overlayfs", "-f", "-o",
			fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work,allow_other", backing), at,
		}
	})
}

func bindTarget(ctx context.Context, l *lab) (target, error) {
	return l.background(ctx, "bindfs", func(backing, at string) []string { return []string{"bindfs", "-f", backing, at} })
}

// background starts a FUSE server in the foreground of a process of ours and waits for its mount.
func (l *lab) background(ctx context.Context, name string, args func(backing, at string) []string) (target, error) {
	backing, err := l.mkdir(name, "backing")
	if err != nil {
		return target{}, err
	}
	at, err := l.mkdir(name, "mount")
	if err != nil {
		return target{}, err
	}
	line := args(backing, at)
	l.note(line[0], line[1:]...)
	cmd, err := l.command(context.Background(), "", "", line[0], line[1:]...)
	if err != nil {
		return target{}, err
	}
	if err := cmd.Start(); err != nil {
		return target{}, err
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	l.defers(func() error {
		out, err := exec.Command("umount", at).CombinedOutput()
		if err != nil {
			return fmt.Errorf("unmount %s: %w: %s", at, err, out)
		}
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
		}
		return nil
	})
	for range 200 {
		var a, b syscall.Stat_t
		if syscall.Stat(at, &a) == nil && syscall.Stat(l.root, &b) == nil && a.Dev != b.Dev {
			return target{dir: at}, nil
		}
		select {
		case <-done:
			return target{}, fmt.Errorf("%s ended", line[0])
		case <-ctx.Done():
			return target{}, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return target{}, fmt.Errorf("%s does not mount", line[0])
}

// fioJob is a row of the comparison.
type fioJob struct {
	name string
	args []string
	aim  float64 // of the host's; 0 for none but to be ahead of the other FUSE filesystems
}

func fioJobs() []fioJob {
	job := func(name string, aim float64, args ...string) fioJob { return fioJob{name, args, aim} }
	return []fioJob{
		job("4 KiB random write", 0.7, "--rw=randwrite", "--bs=4k"),
		job("4 KiB sequential write", 0.7, "--rw=write", "--bs=4k"),
		job("4 KiB random read, cached", 0.9, "--rw=randread", "--bs=4k"),
		job("4 KiB sequential read, cached", 0.9, "--rw=read", "--bs=4k"),
		job("1 MiB sequential write", 0.8, "--rw=write", "--bs=1m"),
		job("1 MiB random write", 0.8, "--rw=randwrite", "--bs=1m"),
		job("1 MiB sequential read, cached", 0.8, "--rw=read", "--bs=1m"),
		job("1 MiB random read, cached", 0.9, "--rw=randread", "--bs=1m"),
		job("4 KiB random write, O_DIRECT", 0, "--rw=randwrite", "--bs=4k", "--direct=1"),
		job("4 KiB random read, O_DIRECT", 0, "--rw=randread", "--bs=4k", "--direct=1"),
		job("1 MiB sequential write, O_DIRECT", 0, "--rw=write", "--bs=1m", "--direct=1"),
		job("1 MiB sequential read, O_DIRECT", 0, "--rw=read", "--bs=1m", "--direct=1"),
		job("8 KiB random write, fdatasync each", 0.7, "--rw=randwrite", "--bs=8k", "--fdatasync=1"),
		job("8 KiB sequential write, fdatasync each", 0.7, "--rw=write", "--bs=8k", "--fdatasync=1"),
	}
}

// layout writes the file that all jobs use.
func layout(ctx context.Context, l *lab, t target) error {
	_, _, err := l.run(ctx, t.dir, "fio", "--name=fio", "--filename=fio", fmt.Sprintf("--size=%dm", l.fioMB), "--rw=write", "--bs=1m", "--end_fsync=1",
		"--output-format=json")
	return err
}

func fio(ctx context.Context, l *lab, r *record, j fioJob, t target) error {
	if err := l.settle(ctx, t.dir); err != nil {
		return err
	}
	if strings.Contains(j.name, "cached") {
		if _, err := l.quiet(ctx, "cat", filepath.Join(t.dir, "fio")); err != nil {
			return err
		}
	}
	args := append([]string{
		"--name=fio", "--filename=fio", fmt.Sprintf("--size=%dm", l.fioMB), "--ioengine=psync", "--invalidate=0", "--time_based",
		fmt.Sprintf("--runtime=%d", l.seconds), "--output-format=json",
	}, j.args...)
	_, out, err := l.run(ctx, t.dir, "fio", args...)
	if err != nil {
		return err
	}
	var result struct {
		Jobs []struct {
			Read, Write struct {
				IOPS float64 `json:"iops"`
				BW   float64 `json:"bw_bytes"`
			}
		}
	}
	// A warning may stand before the JSON.
	_, body, _ := strings.Cut(out, "{")
	if err := json.Unmarshal([]byte("{"+body), &result); err != nil || len(result.Jobs) != 1 {
		return fmt.Errorf("read what fio says: %w: %s", err, out)
	}
	v := result.Jobs[0]
	r.add("fio/"+j.name+"/"+t.name, v.Read.IOPS+v.Write.IOPS)
	r.add("fio/"+j.name+"/"+t.name+"/bytes", v.Read.BW+v.Write.BW)
	return nil
}
