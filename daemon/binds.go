package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dm/api"
	"dm/dot"
	"dm/internal/durable"
	"dm/internal/errs"
)

// bindRecord is one mount made by `dm mount`, as mounts.json keeps it.
type bindRecord struct {
	Dir      api.Path `json:"dir"`
	Name     string   `json:"name"`             // namespace/dot, without branch and subdot
	Branch   string   `json:"branch,omitempty"` // "": follows checkout
	Subdot   string   `json:"subdot,omitempty"`
	Revision string   `json:"revision,omitempty"` // a commit's id: shows that, read-only
	Asked    string   `json:"asked,omitempty"`    // the revision as the user typed it
	ReadOnly bool     `json:"readonly"`
}

// what says in users' words what the mount shows.
func (r *bindRecord) what() string {
	n, err := dot.ParseName(r.Name)
	if err != nil {
		return r.Name
	}
	n.Branch, n.Subdot = r.Branch, r.Subdot
	if r.Revision == "" {
		return n.String()
	}
	return n.String() + ":" + r.Asked
}

// bound is a mount that is there, or is being made. What the record says of it does not change.
type bound struct {
	bindRecord
	// Of whoever makes or takes away the mount:
	look *look      // what shows the commit; nil for a branch
	at   mountPoint // where it is; zero: nowhere
}

// ofDot says whether the mount shows a branch of the dot with this key, rather than a commit.
func (m *bound) ofDot(key string) bool { return m.Name == key && m.Revision == "" }

// closeLook takes away what shows a commit, if that is what the mount shows.
func (m *bound) closeLook(ctx context.Context, force bool) error {
	if m.look == nil {
		return nil
	}
	if err := m.look.close(ctx, force); err != nil {
		return err
	}
	m.look = nil
	return nil
}

// binds is the mounts that users made. They stay until `dm umount`: mounts.json remembers them over restarts.
type binds struct {
	file string

	mu  sync.Mutex
	all []*bound
}

// read returns what mounts.json remembers.
func (b *binds) read() ([]bindRecord, error) {
	text, err := os.ReadFile(b.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "read the list of mounts: %w", err)
	}
	var records []bindRecord
	if err := json.Unmarshal(text, &records); err != nil {
		return nil, errs.WithHint(errs.New(errs.Damaged, "read the list of mounts %s: %w", b.file, err),
			"move it away; mounts made by 'dm mount' have to be made again")
	}
	return records, nil
}

// load takes what mounts.json remembers as the mounts that there are: they are still to be made.
func (b *binds) load() error {
	records, err := b.read()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range records {
		b.all = append(b.all, &bound{bindRecord: r})
	}
	return err
}

// save writes mounts.json. The caller holds mu.
func (b *binds) save() error {
	records := make([]bindRecord, len(b.all))
	for i, m := range b.all {
		records[i] = m.bindRecord
	}
	text, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "encode the list of mounts: %w", err)
	}
	if err := durable.WriteFile(b.file, append(text, '\n'), 0o600); err != nil {
		return errs.New(errs.KindOf(err), "write the list of mounts: %w", err)
	}
	return nil
}

// reserve enters a mount that is about to be made; a directory can have one.
func (b *binds) reserve(m *bound) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, other := range b.all {
		if other.Dir == m.Dir {
			return taken(other)
		}
	}
	b.all = append(b.all, m)
	return b.save()
}

func taken(by *bound) error {
	return errs.WithHint(errs.New(errs.Conflict, "%s is mounted at %s already", by.what(), by.Dir),
		"take it away with 'dm umount %s'", by.Dir)
}

// remove forgets a mount.
func (b *binds) remove(m *bound) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = slices.DeleteFunc(b.all, func(o *bound) bool { return o == m })
	return b.save()
}

// list returns all mounts for which keep is true.
func (b *binds) list(keep func(*bound) bool) []*bound {
	b.mu.Lock()
	defer b.mu.Unlock()
	var some []*bound
	for _, m := range b.all {
		if keep(m) {
			some = append(some, m)
		}
	}
	return some
}

// at returns the mount at a directory, or nil.
func (b *binds) at(dir api.Path) *bound {
	for _, m := range b.list(func(m *bound) bool { return m.Dir == dir }) {
		return m
	}
	return nil
}

// rename follows the rename of a dot.
func (b *binds) rename(from, to string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, m := range b.all {
		if m.Name == from {
			renamed := *m // others may be reading what it was
			renamed.Name = to
			b.all[i] = &renamed
		}
	}
	return b.save()
}

// there says whether the mount is where it was made, and on top. Somebody else may have taken it away. What somebody else has
// mounted over it or in its place is not ours to touch: over it is a Conflict.
func (m *bound) there() (bool, error) {
	if m.at == (mountPoint{}) {
		return false, nil
	}
	at, err := mountsAt(m.at.dir)
	if err != nil {
		return false, err
	}
	switch i := slices.Index(at, m.at); {
	case i < 0:
		return false, nil
	case i < len(at)-1:
		return false, errs.WithHint(errs.New(errs.Conflict, "something else is mounted over %s at %s", m.what(), m.Dir),
			"take that away with 'umount %s' first", m.Dir)
	}
	return true, nil
}

// unbind takes the mount away, if it is there. In use: a Conflict that names the processes; with force it goes away all the
// same.
func (m *bound) unbind(force bool) error {
	there, err := m.there()
	if err != nil && !force {
		return err
	}
	if !there {
		m.at = mountPoint{}
		return nil
	}
	dir := m.at.dir
	err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) && force {
		err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	switch {
	case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist): // gone already
		m.at = mountPoint{}
		return nil
	case errors.Is(err, unix.EBUSY):
		who := usersBelow(dir)
		if who == "" {
			who = "a process"
		}
		return errs.WithHint(errs.New(errs.Conflict, "unmount %s: in use by %s", dir, who), "stop it and try again")
	}
	return errs.New(errs.KindOf(err), "unmount %s: %w", dir, err)
}

// lookWait bounds how long an error waits for the names of who is in the way. To read of a process that hangs in the
// kernel in /proc can hang too.
const lookWait = 2 * time.Second

// usersBelow names the processes that have something open below dir, as far as /proc tells in time. It follows no link
// into dir.
func usersBelow(dir string) string {
	found := make(chan string, 1)
	go func() { found <- findUsers(dir) }()
	select {
	case users := <-found:
		return users
	case <-time.After(lookWait):
		return ""
	}
}

func findUsers(dir string) string {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	var users []string
	for _, p := range procs {
		if p.Name()[0] < '0' || p.Name()[0] > '9' {
			continue
		}
		if base := "/proc/" + p.Name(); uses(base, dir) {
			comm, _ := os.ReadFile(base + "/comm")
			users = append(users, fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), p.Name()))
		}
	}
	return strings.Join(users, ", ")
}

func uses(proc, dir string) bool {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	if fds, err := os.ReadDir(proc + "/fd"); err == nil {
		for _, fd := range fds {
			links = append(links, proc+"/fd/"+fd.Name())
		}
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && (target == dir || strings.HasPrefix(target, dir+"/")) {
			return true
		}
	}
	maps, err := os.ReadFile(proc + "/maps")
	return err == nil && strings.Contains(string(maps), " "+dir+"/")
}

// unbindAll takes all mounts away when the server ends; mounts.json keeps them. Busy: a Conflict, unless force.
func (b *binds) unbindAll(ctx context.Context, force bool) error {
	for _, m := range b.list(func(*bound) bool { return true }) {
		if err := m.unbind(force); err != nil {
			return err
		}
		if err := m.closeLook(ctx, force); err != nil {
			return err
		}
	}
	return nil
}
