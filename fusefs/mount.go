package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"dm/internal/errs"
)

const (
	// maxRequest is the largest READ and WRITE, in bytes; the kernel's limit.
	maxRequest = 1 << 20
	// maxBackground is how many requests without a waiting process (writeback, read-ahead) may be on their way. READs of
	// it can wait for a remote store; they must not take all places from writeback. Each WRITE has a buffer of maxRequest
	// here for as long as it takes: 256 of them made a large copy cost 250 MB of memory.
	maxBackground = 64
	// readAheadKB is what the kernel reads ahead for a sequential reader, in KiB.
	readAheadKB = 1024
)

// Mount is a volume mounted at a directory. Its methods are safe for concurrent use.
type Mount struct {
	dir    string
	dev    uint32 // minor number of the mount's device, and number of its connection in fusectl
	vol    Volume
	opts   Options
	log    *slog.Logger
	fs     *filesystem
	server *fuse.Server
	leases *leases
	cutter *cutter // nil: read-only
	served chan struct{}

	conn    *connection
	connErr error // why there is no conn

	detach  func() // from the volume
	unmount sync.Mutex
}

// New mounts vol at dir, an existing directory, and serves it until it is unmounted. It needs CAP_SYS_ADMIN.
//
// Every user sees the mount and the kernel checks permissions (allow_other, default_permissions). Device nodes and
// set-user-ID bits work in it: a database's data directory is what the root user who runs the server mounts on purpose,
// and a volume that ignored them would not give back what was put into it.
func New(ctx context.Context, vol Volume, dir string, opts Options) (*Mount, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	m := &Mount{dir: dir, vol: vol, opts: opts, log: opts.Log.With("mount", dir), served: make(chan struct{}), detach: func() {}}
	m.leases = newLeases(opts.Cache == Writeback && !opts.ReadOnly)
	m.fs = newFilesystem(vol, m.leases, opts, m.log)
	if !opts.ReadOnly {
		m.cutter = newCutter(m)
		m.fs.cutter = m.cutter
	}
	if err := m.start(); err != nil {
		return nil, err
	}
	if err := m.ready(ctx); err != nil {
		m.closeConn()
		unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return nil, err
	}
	return m, nil
}

// start mounts and begins to serve. The mount is made here and not by go-fuse, whose /dev/fuse descriptor would be
// inherited by child processes: one that outlives the server would keep the mount hanging for ever.
func (m *Mount) start() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return errs.WithHint(fmt.Errorf("mount %s: open /dev/fuse: %w", m.dir, err),
			"load the kernel's fuse module (modprobe fuse), and give the container this device")
	}
	var flags uintptr
	if m.opts.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, maxRequest)
	if err := unix.Mount(m.opts.FSName, m.dir, "fuse.dm", flags, data); err != nil {
		unix.Close(fd)
		return fmt.Errorf("mount %s: %w", m.dir, err)
	}
	m.server, err = fuse.NewServer(m.fs, fmt.Sprintf("/dev/fd/%d", fd), m.protocol())
	if err != nil {
		unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		return fmt.Errorf("mount %s: %w", m.dir, err)
	}
	go func() {
		defer close(m.served)
		m.server.Serve()
	}()
	return nil
}

func (m *Mount) protocol() *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name:                     "dm",
		MaxBackground:            maxBackground,
		MaxWrite:                 maxRequest,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		DisableSplice:            true,
		// Passthrough would let reads and writes of the root user bypass this server.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_ASYNC_DIO,
		Logger: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
	}
	if m.opts.Cache == Writeback && !m.opts.ReadOnly {
		o.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	return o
}

// ready does what needs the mount to be there.
func (m *Mount) ready(ctx context.Context) error {
	dev, err := deviceOf(m.dir)
	if err != nil {
		return err
	}
	m.dev = dev
	m.conn, m.connErr = openConnection(int(dev))
	if now, err := deviceOf(m.dir); err != nil || now != dev {
		return errors.Join(err, errs.New(errs.Conflict, "mount %s: it was unmounted or mounted over at once", m.dir))
	}
	m.tune()
	if m.cutter == nil {
		return nil
	}
	if err := m.cutter.begin(ctx); err != nil {
		return err
	}
	m.detach = m.vol.Attach(m.cutter)
	return nil
}

// tune lifts limits that the kernel sets for filesystems served by unprivileged users: 128 KiB of read-ahead, and one
// percent of the memory for dirty pages, strictly kept, which stops writers long before the disk is busy.
func (m *Mount) tune() {
	for _, s := range []struct{ file, value string }{
		{"read_ahead_kb", fmt.Sprint(readAheadKB)}, {"strict_limit", "0"}, {"max_ratio", "100"},
	} {
		path := fmt.Sprintf("/sys/class/bdi/0:%d/%s", m.dev, s.file)
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			m.log.Warn("volume is slower than it could be", "err", err)
		}
	}
}

// Dir returns the directory it is mounted at.
func (m *Mount) Dir() string { return m.dir }

// Done is closed when the kernel has let the mount go, by whatever way: nothing more will be asked of the volume.
func (m *Mount) Done() <-chan struct{} { return m.served }

// unmountWait is how long Unmount waits for what keeps a mount busy only for a moment, as a process that is ending.
const unmountWait = time.Second

// Unmount unmounts and waits until the kernel has let go, so that everything written has reached the volume. If
// processes use the mount it fails with a Conflict that names them, and the mount goes on.
func (m *Mount) Unmount(ctx context.Context) error {
	m.unmount.Lock()
	defer m.unmount.Unlock()
	if m.gone() {
		m.close()
		return m.sweep()
	}
	if m.cutter != nil {
		m.cutter.pause(ctx)
	}
	err := m.umount(ctx)
	if err != nil && m.cutter != nil {
		if rerr := m.cutter.resume(ctx); rerr != nil {
			m.log.Error("volume that is still mounted cannot be committed", "err", rerr)
		}
	}
	if err != nil {
		return err
	}
	return m.wait(ctx)
}

func (m *Mount) umount(ctx context.Context) error {
	deadline := time.Now().Add(unmountWait)
	for {
		err := unix.Unmount(m.dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil || m.gone():
			return nil
		case err == unix.EINVAL: // somebody else unmounted it
			return nil
		case err != unix.EBUSY:
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		case time.Now().After(deadline):
			return m.busy()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", m.dir, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// busy returns the error that tells who uses the mount.
func (m *Mount) busy() error {
	users := usersOf(m.dir, m.dev, usage)
	if len(users) == 0 {
		return errs.New(errs.Conflict, "unmount %s: it is in use", m.dir)
	}
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = u.String()
	}
	return errs.WithHint(errs.New(errs.Conflict, "unmount %s: in use by %s", m.dir, strings.Join(names, ", ")),
		"stop these processes and try again")
}

// Users names processes that have files of the mount open or mapped, or are in one of its directories, at most ten.
func (m *Mount) Users() []string { return m.named(anyUsage) }

// DataUsers names processes that have files of the mount open or mapped, at most ten. A process that is merely in one of its
// directories is none.
func (m *Mount) DataUsers() []string { return m.named(dataUsage) }

func (m *Mount) named(how func(pid int, dir string, minor uint32) string) []string {
	var names []string
	for _, u := range usersOf(m.dir, m.dev, how) {
		names = append(names, u.String())
	}
	return names
}

// wait waits until the kernel has let go. A mount that was copied into another mount namespace (a container) lives on
// there after it is unmounted here.
func (m *Mount) wait(ctx context.Context) error {
	select {
	case <-m.served:
		m.close()
		return nil
	case <-ctx.Done():
		return errs.New(errs.Conflict, "unmount %s: still mounted in a container or another mount namespace: %w", m.dir, ctx.Err())
	}
}

// Lazy takes the mount away from its directory at once. Processes that use it can go on until they close what they have
// open; then Done is closed. Commits see what they write.
func (m *Mount) Lazy() error {
	m.unmount.Lock()
	defer m.unmount.Unlock()
	if m.gone() {
		m.close()
		return m.sweep()
	}
	if err := unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	if m.cutter != nil {
		// The flusher's directory would keep the detached mount alive. What is written from now on by who still has a file
		// open cannot be flushed any more, except by the kernel itself, when the file is closed.
		m.cutter.pause(context.Background())
	}
	go func() {
		<-m.served
		m.close()
	}()
	return nil
}

// sweep takes a mount whose connection has been broken away from its directory, where it stays otherwise.
func (m *Mount) sweep() error {
	mounts, err := mountsAt(m.dir)
	if err != nil || len(mounts) == 0 || uint32(mounts[len(mounts)-1].Minor) != m.dev {
		return err
	}
	if err := unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	return nil
}

// gone says whether the kernel has let go, or the connection is broken.
func (m *Mount) gone() bool {
	select {
	case <-m.served:
		return true
	default:
		return false
	}
}

func (m *Mount) close() {
	if m.cutter != nil {
		m.cutter.close()
	}
	m.detach()
	m.closeConn()
}

func (m *Mount) closeConn() {
	if m.conn != nil {
		m.conn.close()
	}
}

// Abort breaks the connection: every call into the mount, also those that wait, fails with ENOTCONN. What the kernel has
// not written out is lost. It is for a mount that does not react any more.
func (m *Mount) Abort() error {
	if m.conn == nil {
		return m.connErr
	}
	return m.conn.abort()
}

// deviceOf returns the minor device number of the FUSE filesystem mounted at dir, without touching it.
func deviceOf(dir string) (uint32, error) {
	mounts, err := mountsAt(dir)
	if err != nil {
		return 0, err
	}
	if len(mounts) == 0 {
		return 0, fmt.Errorf("mount %s: %w", dir, syscall.ENOENT)
	}
	return uint32(mounts[len(mounts)-1].Minor), nil
}
