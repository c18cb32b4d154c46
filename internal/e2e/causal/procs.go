package causal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// workerEnv holds a worker's orders; a program that starts rings calls RunWorker first thing in its main.
const workerEnv = "DM_E2E_CAUSAL_WORKER"

type orders struct {
	Ring     Ring
	Root     string
	Progress string
}

// Load is a ring at work: processes that hand the right to take steps round through pipes.
type Load struct {
	procs    []*exec.Cmd
	stderr   []*bytes.Buffer
	progress []byte   // a shared mapping: the latest step begun, the latest done
	lifeline *os.File // the write end of a pipe; the processes end when it closes, as it does when this one is killed
}

// Start has procs processes go on from step first. scratch is a directory outside of what is tested.
func Start(r *Ring, root string, first int64, procs int, scratch string) (_ *Load, err error) {
	o := orders{Ring: *r, Root: root, Progress: filepath.Join(scratch, r.Name+".progress")}
	if err := os.WriteFile(o.Progress, make([]byte, 16), 0o600); err != nil {
		return nil, err
	}
	progress, err := share(o.Progress)
	if err != nil {
		return nil, err
	}
	l := &Load{progress: progress}
	l.cell(0).Store(first - 1)
	l.cell(1).Store(first - 1)
	env, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Stop()
		}
	}()
	alive, lifeline, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l.lifeline = lifeline
	defer alive.Close()
	in := make([]*os.File, procs)
	out := make([]*os.File, procs)
	for i := range procs {
		if in[i], out[(i+procs-1)%procs], err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	if _, err := out[procs-1].Write(binary.LittleEndian.AppendUint64(nil, uint64(first))); err != nil {
		return nil, err
	}
	for i := range procs {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), workerEnv+"="+string(env))
		cmd.Stdin = in[i]
		cmd.ExtraFiles = []*os.File{out[i], alive}
		buf := new(bytes.Buffer)
		cmd.Stderr = buf
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		in[i].Close()
		out[i].Close()
		l.procs, l.stderr = append(l.procs, cmd), append(l.stderr, buf)
	}
	return l, nil
}

func share(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, 16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func cell(m []byte, i int) *atomic.Int64 { return (*atomic.Int64)(unsafe.Pointer(&m[8*i])) }

func (l *Load) cell(i int) *atomic.Int64 { return cell(l.progress, i) }

// Begun returns the latest step that may have begun.
func (l *Load) Begun() int64 { return l.cell(0).Load() }

// Done returns the latest step that has returned.
func (l *Load) Done() int64 { return l.cell(1).Load() }

// Pause stops all processes where they are; Continue lets them go on.
func (l *Load) Pause() error { return l.signal(syscall.SIGSTOP) }

// Continue undoes Pause.
func (l *Load) Continue() error { return l.signal(syscall.SIGCONT) }

func (l *Load) signal(sig syscall.Signal) error {
	var errs []error
	for _, cmd := range l.procs {
		errs = append(errs, cmd.Process.Signal(sig))
	}
	if sig == syscall.SIGSTOP {
		for _, cmd := range l.procs {
			errs = append(errs, awaitStopped(cmd.Process.Pid))
		}
	}
	return errors.Join(errs...)
}

// awaitStopped waits until a process that was sent SIGSTOP is out of the system call it was in.
func awaitStopped(pid int) error {
	for range 5000 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return err
		}
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 && stat[i+2] == 'T' && threadsStopped(pid) {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("process %d does not stop", pid)
}

func threadsStopped(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		if i := bytes.LastIndexByte(stat, ')'); err == nil && (i < 0 || stat[i+2] != 'T') {
			return false
		}
	}
	return len(tasks) > 0
}

// Stop kills all processes and returns an error if one had ended before by itself. It may be called again.
func (l *Load) Stop() error {
	var errs []error
	for _, cmd := range l.procs {
		cmd.Process.Kill()
	}
	for i, cmd := range l.procs {
		var exit *exec.ExitError
		err := cmd.Wait()
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			errs = append(errs, fmt.Errorf("process %d of the ring ended: %v %s", i, err, l.stderr[i]))
		}
	}
	l.procs = nil
	l.lifeline.Close()
	return errors.Join(errs...)
}

// RunWorker does a worker's work and exits, if this process was started as one.
func RunWorker() {
	env, ok := os.LookupEnv(workerEnv)
	if !ok {
		return
	}
	if err := work(env); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func work(env string) error {
	var o orders
	if err := json.Unmarshal([]byte(env), &o); err != nil {
		return err
	}
	progress, err := share(o.Progress)
	if err != nil {
		return err
	}
	w := newWriter(&o.Ring, o.Root)
	defer w.close()
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 4))
	next, alive := os.NewFile(3, "next"), os.NewFile(4, "alive")
	go func() {
		alive.Read(make([]byte, 1))
		os.Exit(0)
	}()
	var token [8]byte
	for {
		if _, err := io.ReadFull(os.Stdin, token[:]); err != nil {
			select {} // its neighbor is gone: what comes is Stop, or the end of the lifeline
		}
		s := int64(binary.LittleEndian.Uint64(token[:]))
		for range 1 + rnd.IntN(16) {
			cell(progress, 0).Store(s)
			if err := w.step(s); err != nil {
				return err
			}
			cell(progress, 1).Store(s)
			s++
		}
		binary.LittleEndian.PutUint64(token[:], uint64(s))
		if _, err := next.Write(token[:]); err != nil {
			select {}
		}
	}
}
