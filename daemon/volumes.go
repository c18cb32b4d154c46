package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dm/dockervol"
	"dm/dot"
	"dm/internal/errs"
)

// volumeDriver serves Docker's volumes: each is a subdot, or the whole of a dot.
//
// What a container binds is a mount of its own at mnt/.volumes/ID, made for each Mount: the kernel resolves the subdot when
// dm does, so that nothing in the dot (a symlink in the place of the subdot) can lead Docker anywhere else, and what one
// container is about to bind is not exchanged by another's start.
type volumeDriver struct {
	s    *server
	list *volumeList
	log  *slog.Logger

	life   context.Context // of what goes on when Docker does not wait any longer; set by servePlugin
	clones clones

	busy keyed // by directory: mounting and unmounting, which may wait for a remote

	mu     sync.Mutex
	mounts map[string]*volumeMount // by directory
}

// volumeMount is a directory that one or more Mounts with the same id were told of.
type volumeMount struct {
	copyID string
	users  int
}

var _ dockervol.Driver = (*volumeDriver)(nil)

// guarded runs one of Docker's requests like an operation of a client: a server that stops refuses it.
func (d *volumeDriver) guarded(fn func() error) error {
	if err := d.s.ops.enter(); err != nil {
		return err
	}
	defer d.s.ops.leave()
	return fn()
}

// volumeOptions is what `docker volume create -o` and driver_opts can say.
type volumeOptions struct {
	from     *cloneSource
	branch   string
	cache    dot.CacheMode
	readOnly bool
}

// cloneSource names what a dot is cloned from when its first volume is created.
type cloneSource struct {
	Remote string
	Name   string // namespace/dot there
	Branch string // "": the remote's own choice
}

func parseVolumeOptions(opts map[string]string) (o volumeOptions, err error) {
	for key, value := range opts {
		switch key {
		case "from":
			o.from, err = parseCloneSource(value)
		case "branch":
			o.branch = value
			err = dot.CheckName("branch", value)
		case "cache":
			o.cache = dot.CacheMode(value)
			if o.cache != dot.CacheWriteback && o.cache != dot.CacheThrough {
				err = errs.New(errs.Usage, "volume option cache=%s is not known: use %s or %s", value, dot.CacheWriteback, dot.CacheThrough)
			}
		case "readonly":
			if o.readOnly, err = strconv.ParseBool(value); err != nil {
				err = errs.New(errs.Usage, "volume option readonly=%s is not known: use true or false", value)
			}
		default:
			err = errs.WithHint(errs.New(errs.Usage, "volume option %s is not known", key), "use from=, branch=, cache= or readonly=")
		}
		if err != nil {
			return o, err
		}
	}
	return o, nil
}

// parseCloneSource reads REMOTE/NAMESPACE/DOT[@BRANCH].
func parseCloneSource(s string) (*cloneSource, error) {
	remote, rest, ok := strings.Cut(s, "/")
	name, branch, pinned := strings.Cut(rest, "@")
	if !ok || !strings.Contains(name, "/") || pinned && branch == "" {
		return nil, errs.New(errs.Usage, "volume option from=%s is not known: use from=REMOTE/NAMESPACE/DOT[@BRANCH]", s)
	}
	err := dot.CheckName("remote", remote)
	if _, nerr := dot.ParseDotName(name); err == nil {
		err = nerr
	}
	if err == nil && pinned {
		err = dot.CheckName("branch", branch)
	}
	return &cloneSource{Remote: remote, Name: name, Branch: branch}, err
}

// Create implements dockervol.Driver. The dot and the subdot are made if they are not there.
func (d *volumeDriver) Create(ctx context.Context, name string, options map[string]string) error {
	n, err := dot.ParseName(name)
	if err != nil {
		return err
	}
	o, err := parseVolumeOptions(options)
	if err != nil {
		return err
	}
	switch {
	case o.branch == "":
	case n.Branch != "" && n.Branch != o.branch:
		return errs.New(errs.Usage, "volume %s is on branch %s, and its option says branch=%s", name, n.Branch, o.branch)
	default:
		n.Branch = o.branch
	}
	if _, err := d.s.dots.Info(ctx, n); errs.KindOf(err) == errs.NotFound && o.from != nil {
		if err := d.cloneFor(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot}, o); err != nil {
			return err
		}
	}
	return d.guarded(func() error {
		// With the name held alone, so that of the volumes of one group that are created together the first makes the dot.
		err := d.s.withDotAlone(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot}, func() error { return d.needDot(ctx, n, o) })
		if err != nil {
			return err
		}
		if n.Subdot != dot.RootSubdot {
			if _, err := d.s.dots.EnsureSubdot(ctx, n); err != nil {
				return err
			}
		}
		d.log.Info("volume is created", "volume", name, "dot", n)
		return d.list.add(volumeRecord{
			Volume: name, Dot: key(n), Branch: n.Branch, Subdot: n.Subdot, ReadOnly: o.readOnly, Created: time.Now().UTC(),
		})
	})
}

// needDot makes a volume's dot if it is not there; one that is there must be what the options say.
func (d *volumeDriver) needDot(ctx context.Context, n dot.Name, o volumeOptions) error {
	info, err := d.s.dots.Info(ctx, n)
	if errs.KindOf(err) == errs.NotFound {
		err = d.s.create(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot}, dot.CreateOptions{Cache: o.cache})
		if err == nil {
			info, err = d.s.dots.Info(ctx, n)
		}
	}
	if err != nil {
		return err
	}
	if o.cache != "" && info.Cache != o.cache {
		return errs.WithHint(errs.New(errs.Conflict, "dot %s exists, and not with cache=%s", n.DotName(), o.cache),
			"leave the option out: it is for new dots")
	}
	if o.from != nil && !clonedFrom(info, *o.from) {
		return errs.WithHint(errs.New(errs.Conflict, "dot %s exists, and is no clone of %s at %s", n.DotName(), o.from.Name, o.from.Remote),
			"leave the option from= out, or give the volume another name")
	}
	for _, b := range info.Branches {
		if n.Branch == "" || b.Name == n.Branch {
			return nil
		}
	}
	return errs.WithHint(errs.New(errs.NotFound, "Branch does not exist: %s", n.Branch),
		"make it with 'dm checkout -b %s --dot %s'", n.Branch, n.DotName())
}

func clonedFrom(info *dot.Info, from cloneSource) bool {
	for _, u := range info.Upstreams {
		if u.Remote == from.Remote && u.Name == from.Name {
			return true
		}
	}
	return false
}

// Remove implements dockervol.Driver. The data stay where they are: Docker's users remove volumes lightly.
func (d *volumeDriver) Remove(_ context.Context, name string) error {
	return d.guarded(func() error {
		r, err := d.list.remove(name)
		if err == nil {
			d.log.Info("volume is removed; its dot stays, and 'dm dot delete' deletes it", "volume", name, "dot", r.Dot)
		}
		return err
	})
}

// Mount implements dockervol.Driver.
func (d *volumeDriver) Mount(ctx context.Context, name, id string) (dir string, err error) {
	err = d.guarded(func() error {
		dir, err = d.mount(ctx, name, id)
		return err
	})
	return dir, err
}

func (d *volumeDriver) mount(ctx context.Context, name, id string) (string, error) {
	n, err := d.list.meaning(name)
	if err != nil {
		return "", err
	}
	// While a checkout is going on this waits, and then shows the new branch.
	unlock, err := d.s.names.share(ctx, key(n))
	if err != nil {
		return "", err
	}
	defer unlock()
	r, err := d.list.get(name)
	if err != nil {
		return "", err
	}
	n = r.name()
	if n.Subdot == dot.RootSubdot {
		n.Subdot = ""
	} else {
		if n.Subdot == "" {
			n.Subdot = dot.DefaultSubdot
		}
		if _, err := d.s.dots.EnsureSubdot(ctx, n); err != nil {
			return "", err
		}
	}
	wc, err := d.s.dots.WorkingCopy(ctx, n)
	if err != nil {
		return "", err
	}
	source, err := d.s.branches.show(ctx, wc)
	if err != nil {
		return "", err
	}
	dir := d.dir(name, id)
	free, err := d.busy.alone(ctx, dir)
	if err != nil {
		return "", err
	}
	defer free()
	if d.mountedAgain(dir, wc.ID) {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", errs.New(errs.KindOf(err), "make a mount point: %w", err)
	}
	if _, err := bind(ctx, source, n.Subdot, dir, r.ReadOnly, true); err != nil {
		return "", err
	}
	d.mu.Lock()
	d.mounts[dir] = &volumeMount{copyID: wc.ID, users: 1}
	d.mu.Unlock()
	d.log.Info("volume is mounted", "volume", name, "branch", wc.Branch)
	return dir, nil
}

// mountedAgain counts one more user of a directory if it shows a working copy already.
func (d *volumeDriver) mountedAgain(dir, copyID string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.mounts[dir]
	if m == nil || m.copyID != copyID {
		return false
	}
	m.users++
	return true
}

// dir returns where a Mount is shown. Docker's id and the name may be any text.
func (d *volumeDriver) dir(name, id string) string {
	sum := sha256.Sum256([]byte(name + "\x00" + id))
	return d.s.home.path(mountDir, volumesDir, hex.EncodeToString(sum[:12]))
}

// Unmount implements dockervol.Driver. It waits for nothing but its own Mount: a checkout that stops containers waits for it.
func (d *volumeDriver) Unmount(ctx context.Context, name, id string) error {
	dir := d.dir(name, id)
	free, err := d.busy.alone(ctx, dir)
	if err != nil {
		return err
	}
	defer free()
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.mounts[dir]
	if m == nil {
		return nil
	}
	m.users--
	if m.users > 0 {
		return nil
	}
	delete(d.mounts, dir)
	return dropVolumeMount(dir)
}

// dropVolumeMount takes a mount of ours away from the host. What a container has of it is its own.
func dropVolumeMount(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.KindOf(err), "unmount %s: %w", dir, err)
	}
	os.Remove(dir) //nolint:errcheck // the next start removes it
	return nil
}

// hide takes away all mounts of a working copy that is to be unmounted.
func (d *volumeDriver) hide(copyID string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []error
	for dir, m := range d.mounts {
		if m.copyID == copyID {
			delete(d.mounts, dir)
			all = append(all, dropVolumeMount(dir))
		}
	}
	return errors.Join(all...)
}

// clear removes the mount points that an earlier server left; what was mounted there is gone already.
func (d *volumeDriver) clear() error {
	left, err := os.ReadDir(d.s.home.path(mountDir, volumesDir))
	if err != nil {
		return errs.New(errs.KindOf(err), "clear the mount points of volumes: %w", err)
	}
	for _, e := range left {
		if err := os.Remove(d.s.home.path(mountDir, volumesDir, e.Name())); err != nil {
			return errs.New(errs.KindOf(err), "clear the mount points of volumes: %w", err)
		}
	}
	return nil
}

// Path implements dockervol.Driver.
func (d *volumeDriver) Path(_ context.Context, name string) (string, error) {
	r, err := d.list.get(name)
	if err != nil {
		return "", err
	}
	return d.path(r), nil
}

// path returns where a volume can be seen by the host's users; a path through the dot's link follows its checkouts.
func (d *volumeDriver) path(r volumeRecord) string {
	n := r.name()
	dir := d.s.links.path(n)
	switch n.Subdot {
	case dot.RootSubdot:
		return dir
	case "":
		return filepath.Join(dir, dot.DefaultSubdot)
	}
	return filepath.Join(dir, n.Subdot)
}

// Get implements dockervol.Driver.
func (d *volumeDriver) Get(ctx context.Context, name string) (v dockervol.Volume, err error) {
	r, err := d.list.get(name)
	if err != nil {
		return v, err
	}
	v = d.volume(r)
	err = d.guarded(func() error {
		v.Status = d.status(ctx, r)
		return nil
	})
	return v, err
}

func (d *volumeDriver) volume(r volumeRecord) dockervol.Volume {
	return dockervol.Volume{Name: r.Volume, Mountpoint: d.path(r), CreatedAt: r.Created.Format(time.RFC3339)}
}

// status is what `docker volume inspect` shows of a volume, in bytes. That something of it cannot be told is told.
func (d *volumeDriver) status(ctx context.Context, r volumeRecord) map[string]any {
	n := r.name()
	status := map[string]any{"dot": dot.Name{Namespace: n.Namespace, Dot: n.Dot}.DotName()}
	if r.ReadOnly {
		status["readonly"] = true
	}
	st, err := d.s.dots.Status(ctx, n)
	if err != nil {
		status["error"] = err.Error()
		return status
	}
	status["branch"], status["pinned"], status["commit"] = st.Branch, n.Branch != "", st.Commit
	if n.Subdot == dot.RootSubdot {
		status["size"], status["dirty"] = st.Size, st.Dirty
		return status
	}
	if n.Subdot == "" {
		n.Subdot = dot.DefaultSubdot
	}
	status["subdot"], status["size"], status["dirty"] = n.Subdot, 0, 0
	for _, sub := range st.Subdots {
		if sub.Name == n.Subdot {
			status["size"], status["dirty"] = sub.Size, sub.Dirty
		}
	}
	return status
}

// List implements dockervol.Driver.
func (d *volumeDriver) List(context.Context) ([]dockervol.Volume, error) {
	var all []dockervol.Volume
	for _, r := range d.list.records() {
		all = append(all, d.volume(r))
	}
	return all, nil
}
