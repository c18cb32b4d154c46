package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	apicontainer "github.com/moby/moby/api/types/container"
	apimount "github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"dm/internal/errs"
)

// engine is what dm needs of a container engine. An error of kind Unreachable from list says that there is none, or that it
// is down. The methods are safe for concurrent use.
type engine interface {
	// list returns the containers that run or are paused, in order of name.
	list(ctx context.Context) ([]container, error)
	// inspect adds what list does not tell.
	inspect(ctx context.Context, id string) (details, error)
	// stop ends a container as `docker stop` does, with its own signal and grace. It has ended already: no error.
	stop(ctx context.Context, id string) error
	start(ctx context.Context, id string) error
	pause(ctx context.Context, id string, on bool) error
	// exec runs a command in a container and returns its exit code and the end of its output. When ctx is done it returns at
	// once, with the process id on this host of what still runs, 0 if that is not known.
	exec(ctx context.Context, id string, cmd, env []string) (execResult, error)
	// digest returns the digest by which an image can be pulled again, or the image's id where there is none.
	digest(ctx context.Context, imageID string) (string, error)
	// volumeDir returns where the engine itself keeps a volume's files.
	volumeDir(ctx context.Context, name string) (string, error)
}

// container is one container as a list shows it.
type container struct {
	ID      string
	Name    string // with its leading slash
	Image   string
	ImageID string
	Labels  map[string]string
	Paused  bool
	Mounts  []containerMount
}

// containerMount is a volume or directory in a container.
type containerMount struct {
	Driver string // of a volume; empty: a directory of the host
	Volume string
	Source string // on the host
}

// details is what matters of a single container.
type details struct {
	Started time.Time
	// AutoRemove says that the container is gone when it stops.
	AutoRemove bool
	Grace      time.Duration // between being asked to stop and being killed
}

type execResult struct {
	Code   int
	Output string // the last lines of stdout and stderr
	PID    int    // of a process that was left running
}

// dockerEngine is Docker, by its API; the client and the engine agree on the newest version that both know.
type dockerEngine struct {
	api *client.Client

	mu      sync.Mutex
	digests map[string]string // by image id, whose content never changes
}

// openEngine returns the engine that DOCKER_HOST and its companions name, or the one on this machine. It asks nothing yet.
func openEngine() (*dockerEngine, error) {
	api, err := client.New(client.FromEnv)
	if err != nil {
		return nil, errs.WithHint(errs.New(errs.Usage, "read how Docker is to be reached: %w", err),
			"correct DOCKER_HOST in the server's environment")
	}
	return &dockerEngine{api: api, digests: map[string]string{}}, nil
}

func (e *dockerEngine) close() { e.api.Close() } //nolint:errcheck // connections only

// failed wraps an error of the engine in what was asked of it.
func (e *dockerEngine) failed(err error, what string, args ...any) error {
	what = fmt.Sprintf(what, args...)
	switch {
	case err == nil:
		return nil
	case client.IsErrConnectionFailed(err):
		return errs.New(errs.Unreachable, "%s: no Docker engine answers at %s", what, e.api.DaemonHost())
	case errdefs.IsNotFound(err):
		return errs.New(errs.NotFound, "%s: %w", what, err)
	case errors.Is(err, context.DeadlineExceeded):
		return errs.New(errs.Conflict, "%s: the Docker engine did not answer in time", what)
	}
	return errs.New(errs.KindOf(err), "%s: %w", what, err)
}

func (e *dockerEngine) list(ctx context.Context) ([]container, error) {
	res, err := e.api.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, e.failed(err, "list containers")
	}
	var all []container
	for _, c := range res.Items {
		// A container that restarts by itself is running but for a moment.
		if c.State != apicontainer.StateRunning && c.State != apicontainer.StatePaused && c.State != apicontainer.StateRestarting {
			continue
		}
		one := container{
			ID: c.ID, Name: nameOf(c), Image: c.Image, ImageID: c.ImageID, Labels: c.Labels,
			Paused: c.State == apicontainer.StatePaused,
		}
		for _, m := range c.Mounts {
			switch m.Type {
			case apimount.TypeVolume:
				one.Mounts = append(one.Mounts, containerMount{Driver: m.Driver, Volume: m.Name, Source: m.Source})
			case apimount.TypeBind:
				one.Mounts = append(one.Mounts, containerMount{Source: m.Source})
			}
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b container) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// nameOf returns a container's own name; links give it more, which have another container's name in them.
func nameOf(c apicontainer.Summary) string {
	for _, n := range c.Names {
		if strings.LastIndexByte(n, '/') == 0 {
			return n
		}
	}
	return "/" + c.ID[:min(12, len(c.ID))]
}

// engineGrace is how long Docker waits for a container to end before it kills it, where nothing else was set.
const engineGrace = 10 * time.Second

func (e *dockerEngine) inspect(ctx context.Context, id string) (d details, err error) {
	res, err := e.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return d, e.failed(err, "inspect container %.12s", id)
	}
	d.Grace = engineGrace
	c := res.Container
	if c.State != nil {
		d.Started, _ = time.Parse(time.RFC3339Nano, c.State.StartedAt) // the zero time of one that never started
	}
	if c.HostConfig != nil {
		d.AutoRemove = c.HostConfig.AutoRemove
	}
	if c.Config != nil && c.Config.StopTimeout != nil {
		d.Grace = time.Duration(*c.Config.StopTimeout) * time.Second
	}
	return d, nil
}

func (e *dockerEngine) stop(ctx context.Context, id string) error {
	_, err := e.api.ContainerStop(ctx, id, client.ContainerStopOptions{})
	return e.failed(err, "stop container %.12s", id)
}

func (e *dockerEngine) start(ctx context.Context, id string) error {
	_, err := e.api.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return e.failed(err, "start container %.12s", id)
}

func (e *dockerEngine) pause(ctx context.Context, id string, on bool) (err error) {
	if on {
		_, err = e.api.ContainerPause(ctx, id, client.ContainerPauseOptions{})
		return e.failed(err, "pause container %.12s", id)
	}
	_, err = e.api.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})
	return e.failed(err, "unpause container %.12s", id)
}

// askBack bounds a question to the engine that has to be asked although the time of what it is about is over.
const askBack = 5 * time.Second

func (e *dockerEngine) exec(ctx context.Context, id string, cmd, env []string) (r execResult, err error) {
	made, err := e.api.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: cmd, Env: env, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return r, e.failed(err, "run a command in container %.12s", id)
	}
	conn, err := e.api.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
	if err != nil {
		return r, e.failed(err, "run a command in container %.12s", id)
	}
	out := &tailWriter{max: 2 << 10}
	ended := make(chan error, 1)
	go func() {
		_, err := stdcopy.StdCopy(out, out, conn.Reader)
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	conn.Close()
	if err != nil && ctx.Err() == nil {
		return r, e.failed(err, "read what a command in container %.12s prints", id)
	}
	// The output has ended or is not waited for any longer. How the command ended is asked in any case.
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), askBack)
	defer cancel()
	r.Output = out.String()
	for {
		st, ierr := e.api.ExecInspect(ask, made.ID, client.ExecInspectOptions{})
		switch {
		case ierr != nil:
			return r, e.failed(errors.Join(ctx.Err(), ierr), "ask how a command in container %.12s ended", id)
		case ctx.Err() != nil && st.Running:
			r.PID = st.PID
			return r, ctx.Err()
		case !st.Running:
			r.Code = st.ExitCode
			return r, nil
		}
		// The end of the output comes a moment before the end of the command.
		select {
		case <-ask.Done():
			return r, e.failed(ask.Err(), "wait for the end of a command in container %.12s", id)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (e *dockerEngine) digest(ctx context.Context, imageID string) (string, error) {
	e.mu.Lock()
	known := e.digests[imageID]
	e.mu.Unlock()
	if known != "" {
		return known, nil
	}
	img, err := e.api.ImageInspect(ctx, imageID)
	if err != nil {
		return imageID, e.failed(err, "inspect image %s", imageID)
	}
	d := imageID
	for _, ref := range img.RepoDigests {
		if _, after, ok := strings.Cut(ref, "@"); ok {
			d = after
			break
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.digests) > maxDigests {
		clear(e.digests)
	}
	e.digests[imageID] = d
	return d, nil
}

// maxDigests bounds the images whose digest is remembered.
const maxDigests = 1000

func (e *dockerEngine) volumeDir(ctx context.Context, name string) (string, error) {
	res, err := e.api.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
	if err != nil {
		return "", e.failed(err, "find the Docker volume %s", name)
	}
	v := res.Volume
	if v.Driver != "local" || v.Mountpoint == "" {
		return "", errs.New(errs.Usage, "the files of the Docker volume %s are with its driver %s, not in a directory of this host", name, v.Driver)
	}
	if len(v.Options) > 0 {
		return "", errs.WithHint(errs.New(errs.Usage, "the Docker volume %s is a mount that is there only while a container runs (options %v)",
			name, v.Options), "import the directory that it mounts")
	}
	return v.Mountpoint, nil
}

// tailWriter keeps the end of what is written to it.
type tailWriter struct {
	max int

	mu  sync.Mutex
	buf []byte
}

var _ io.Writer = (*tailWriter)(nil)

func (w *tailWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p[max(0, len(p)-w.max):]...)
	w.buf = w.buf[max(0, len(w.buf)-w.max):]
	return len(p), nil
}

func (w *tailWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(bytes.TrimSpace(w.buf))
}
