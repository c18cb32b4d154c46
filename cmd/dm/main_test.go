package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

// The exit codes are a contract with users' scripts; the two lines of an error are too.
func TestReport(t *testing.T) {
	want := map[errs.Kind]int{
		errs.Internal: 1, errs.Usage: 2, errs.NotFound: 3, errs.Conflict: 4, errs.NotAllowed: 5, errs.Unreachable: 6,
		errs.Damaged: 7, errs.NoSpace: 1, errs.Interrupted: 130,
	}
	for _, k := range errs.Kinds() {
		var out bytes.Buffer
		code := report(&out, errs.WithHint(errs.New(k, "what\nand why"), "do\nthis"))
		if code != want[k] {
			t.Errorf("%v: exit code %d, want %d", k, code, want[k])
		}
		if got := out.String(); got != "dm: what and why\ndm: hint: do this\n" {
			t.Errorf("%v: %q", k, got)
		}
	}
	var out bytes.Buffer
	if code := report(&out, nil); code != 0 || out.Len() > 0 {
		t.Errorf("no error: exit code %d, %q", code, &out)
	}
	if code := report(&out, errs.New(errs.Conflict, "no hint")); code != 4 || out.String() != "dm: no hint\n" {
		t.Errorf("without hint: %d, %q", code, &out)
	}
}

func TestReferenceIsFresh(t *testing.T) {
	want, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, stderr bytes.Buffer
	if err := run(t.Context(), []string{"docs"}, nil, &got, &stderr); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got.Bytes()) {
		t.Error("docs/cli.md is not what the commands say: run 'make docs'")
	}
}

// Every command says what it does, every flag what it is for, and every listing has both forms for programs.
func TestEveryCommandIsComplete(t *testing.T) {
	// These list nothing: with --json they say what one thing has cost.
	costs := []string{"commit", "push", "pull", "clone"}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: a short text without a final period is needed, not %q", cmd.CommandPath(), cmd.Short)
		}
		if cmd.RunE == nil {
			t.Errorf("%s does nothing", cmd.CommandPath())
		}
		if (cmd.Flags().Lookup("json") != nil) != (cmd.Flags().Lookup("scripting") != nil) && !slices.Contains(costs, cmd.Name()) {
			t.Errorf("%s: --json and --scripting go together", cmd.CommandPath())
		}
		for _, name := range []string{"home", "config"} {
			if cmd.Flags().Lookup(name) == nil {
				t.Errorf("%s has no --%s", cmd.CommandPath(), name)
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(&app{}))
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "-", 1: "0.00 kiB", 512: "0.50 kiB", 336896: "329.00 kiB", 1<<20 - 1: "1024.00 kiB", 1 << 20: "1.00 MiB",
		850375475: "810.98 MiB", 1 << 30: "1.00 GiB", 5 << 40: "5120.00 GiB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPathsForPeople(t *testing.T) {
	for p, want := range map[api.Path]string{
		"db/file": "db/file", "db/ü ö": "db/ü ö", "a\nb": `"a\nb"`, "\x1b[31m": `"\x1b[31m"`, "\xff": `"\xff"`, `"q"`: `"\"q\""`, "": `""`,
	} {
		if got := path(p); got != want {
			t.Errorf("path(%q) = %s, want %s", string(p), got, want)
		}
	}
}

func TestScriptLinesAreRecords(t *testing.T) {
	var out bytes.Buffer
	if err := scriptLine(&out, "a", 1, "with\ttab", "with\nbreak", true); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "a\t1\t\"with\\ttab\"\t\"with\\nbreak\"\ttrue\n" {
		t.Errorf("%q", got)
	}
}

func TestProgressOfAShortCommandIsSilent(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.show(api.Progress{Stage: "committing", Done: 1, Total: 2})
	p.end()
	if out.Len() > 0 {
		t.Errorf("%q", &out)
	}
	soon := time.Now().Add(9 * time.Second)
	if p.next.Before(soon) {
		t.Error("where nobody watches, a command of a few seconds says how far it is")
	}
	p.next = time.Time{}
	p.show(api.Progress{Stage: "committing", Done: 1 << 20, Total: 4 << 20, Bytes: true})
	if got := out.String(); got != "committing 1.00 MiB / 4.00 MiB 25.00%\n" {
		t.Errorf("%q", got)
	}
	if p.next.Before(soon) {
		t.Error("the next line comes at once")
	}
}

// Many dm at the same time change the client config; no change is lost and nobody sees half a file.
func TestConfigChangesAreNotLost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dm", "config.json")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			a := &app{config: file, home: fmt.Sprintf("/home/%d", i)}
			if err := a.setCurrentDot("dot"); err != nil {
				t.Error(err)
			}
			if _, err := a.readConfig(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	cfg, err := loadConfig(file)
	if err != nil || len(cfg.Servers) != 20 {
		t.Errorf("%d of 20 changes are left, %v", len(cfg.Servers), err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// program returns a command that runs dm as a process of its own, with a state directory in dir.
func program(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "dm", args...)
	cmd.Env = append(os.Environ(), "DM_HOME="+filepath.Join(dir, "home"), "DM_CONFIG="+filepath.Join(dir, "config"), "DM_DOT=", "DM_DOCKER_PLUGIN=off")
	return cmd
}

// startServer runs a server for a test that talks to it directly.
func startServer(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := program(t, dir, "cluster", "init").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		cmd := exec.Command("dm", "cluster", "reset", "-f", "--home", filepath.Join(dir, "home"), "-c", filepath.Join(dir, "config"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return dir
}

// Ctrl-C ends a command that waits, with 130 and one line.
func TestInterrupt(t *testing.T) {
	dir := startServer(t)
	cmd := program(t, dir, "cluster", "reset")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var stderr lockedBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(stderr.String(), "Type Y"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not ask")
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // the exit code says it
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if !strings.HasSuffix(stderr.String(), "\ndm: interrupted, nothing was changed\n") {
		t.Errorf("%q", stderr.String())
	}
}

// A pipe that is closed early is no error of ours to talk about.
func TestReaderHasEnough(t *testing.T) {
	dir := startServer(t)
	if out, err := program(t, dir, "init", "app", "db").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file := filepath.Join(dir, "home", "mnt", "admin", "app", "db", "big")
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := program(t, dir, "commit", "-m", "x").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := program(t, dir, "cat", "HEAD:db/big")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("it wrote all of it")
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() && stderr.Len() > 0 {
		t.Errorf("%v: %s", cmd.ProcessState, &stderr)
	}
}

// Several users of one server at the same time: commits, checkouts, renames and deletions of dots of their own and of one
// that all share. Whatever the order, each command ends, and ends with an answer of its kind.
func TestManyAtOnce(t *testing.T) {
	dir := startServer(t)
	if out, err := program(t, dir, "init", "shared", "db").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			c := api.NewClient(filepath.Join(dir, "home", api.SocketName))
			defer c.Close()
			for i := range 15 {
				if err := oneUser(ctx, c, dir, fmt.Sprintf("own%d", w), i); err != nil {
					t.Errorf("user %d, round %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	out, err := program(t, dir, "fsck").CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	out, err = program(t, dir, "list", "-H").Output()
	if err != nil || strings.Count(string(out), "\n") != 1 {
		t.Errorf("%v: %s", err, out)
	}
}

func oneUser(ctx context.Context, c *api.Client, dir, own string, round int) error {
	// Others may have a branch or the dot itself in their hands: that is a conflict or not there, never anything else.
	fine := func(err error) error {
		if k := errs.KindOf(err); err == nil || k == errs.Conflict || k == errs.NotFound {
			return nil
		}
		return err
	}
	if _, err := c.Init(ctx, api.InitRequest{Dot: own, Subdots: []string{"db"}}); err != nil {
		return err
	}
	file := filepath.Join(dir, "home", "mnt", "admin", own, "db", "file")
	if err := os.WriteFile(file, fmt.Append(nil, round), 0o600); err != nil {
		return err
	}
	if _, err := c.Commit(ctx, api.CommitRequest{Dot: own, Message: "m", Author: "a"}, nil); err != nil {
		return err
	}
	shared := filepath.Join(dir, "home", "mnt", "admin", "shared", "db", own)
	if err := os.WriteFile(shared, fmt.Append(nil, round), 0o600); err != nil {
		return err
	}
	if _, err := c.Commit(ctx, api.CommitRequest{Dot: "shared", Message: "m", Author: "a"}, nil); err != nil {
		return err
	}
	_, err := c.Checkout(ctx, api.CheckoutRequest{Dot: "shared", Branch: fmt.Sprint("b", round), Create: true})
	if fine(err) != nil {
		return err
	}
	if _, err := c.Checkout(ctx, api.CheckoutRequest{Dot: "shared", Branch: "master"}); err != nil {
		return err
	}
	if _, err := c.List(ctx); err != nil {
		return err
	}
	if _, err := c.RenameDot(ctx, api.RenameDotRequest{Dot: own, To: own + "x"}); err != nil {
		return err
	}
	return c.DeleteDot(ctx, api.DotRequest{Dot: own + "x"})
}

// A client of another version is told which side to change.
func TestOtherVersion(t *testing.T) {
	dir := startServer(t)
	socket := filepath.Join(dir, "home", api.SocketName)
	ask := func(version string) string {
		c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
		defer c.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://dm"+api.PathPrefix+"teleport", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(api.VersionHeader, version)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var e api.Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
			t.Fatal(err)
		}
		return e.Kind + ": " + e.Message + "; " + e.Hint
	}
	want := "conflict: this is dm 99.0, but the server is dm " + api.Version + ` and does not know "teleport"; ` +
		"restart the server: 'dm cluster stop', then 'dm cluster init'"
	if got := ask("99.0"); got != want {
		t.Errorf("%s", got)
	}
	if got := ask(api.Version); !strings.HasPrefix(got, "usage: ") {
		t.Errorf("%s", got)
	}
	// A field that the server does not know could mean the opposite of what it would do.
	c := api.NewClient(socket)
	defer c.Close()
	err := c.Call(t.Context(), api.OpList, map[string]int{"dry-run": 1}, &api.ListResult{}, api.Handlers{})
	if errs.KindOf(err) != errs.Usage {
		t.Errorf("an unknown field: %v", err)
	}
}

// A service manager hears when the volumes are mounted, and when they are about to go.
func TestServiceManagerIsTold(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	next := func() string {
		b := make([]byte, 100)
		l.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	cmd := program(t, dir, "server")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1" {
		t.Errorf("told %q", got)
	}
	if out, err := program(t, dir, "list").CombinedOutput(); err != nil {
		t.Errorf("ready, but: %v: %s", err, out)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "STOPPING=1" {
		t.Errorf("told %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("a clean end is no failure: %v", err)
	}
}

// lockedBuffer is a buffer that can be read while a process writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The commands that README.md shows are those of a script that passes. Its section about Docker is played by the tests of
// containers in internal/e2e.
func TestReadmeIsPlayed(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/script/readme.txt")
	if err != nil {
		t.Fatal(err)
	}
	// The script mounts and imports elsewhere than on the reader's machine.
	local := strings.NewReplacer("/mnt/then", "then", "/var/lib/mysql", "mysql", " > db.tar", "",
		"alice@hub.example.org", "alice@127.0.0.1:$PORT",
		"dm hub serve", "sh -c 'exec dm hub serve --listen 127.0.0.1:0 >hub.txt 2>hub.log' &hub&")
	before, docker, _ := strings.Cut(string(readme), "\n## With Docker\n")
	_, after, _ := strings.Cut(docker, "\n## ")
	shown := 0
	for line := range strings.Lines(before + after) {
		command, ok := strings.CutPrefix(line, "    $ ")
		if !ok {
			continue
		}
		shown++
		if !strings.Contains(string(script), "\nexec "+strings.TrimSpace(local.Replace(command))+"\n") {
			t.Errorf("README.md shows %q, which testdata/script/readme.txt does not run", strings.TrimSpace(command))
		}
	}
	if shown < 10 {
		t.Errorf("only %d commands found in README.md", shown)
	}
}

func TestParseMeta(t *testing.T) {
	got, err := parseMeta([]string{"a=b", "k=a=b", "empty="})
	if want := map[string]string{"a": "b", "k": "a=b", "empty": ""}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for field, want := range map[string]string{
		"K=v": "Metadata field names must start with lowercase characters: K",
		"1=v": "Metadata field names must start with lowercase characters: 1",
		"x":   "Each metadata value must be a name=value pair: x",
		"=v":  "Each metadata value must be a name=value pair: =v",
	} {
		if _, err := parseMeta([]string{field}); errs.KindOf(err) != errs.Usage || err.Error() != want {
			t.Errorf("%s: %v", field, err)
		}
	}
}
