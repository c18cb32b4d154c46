package dockervol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dm/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a Driver that notes what it is asked, and knows one volume.
type recorder struct{ asked chan string }

func (r recorder) note(parts ...string) { r.asked <- strings.Join(parts, " ") }

func (r recorder) Create(_ context.Context, name string, options map[string]string) error {
	r.note("create", name, options["from"])
	if name == "bad" {
		return errs.WithHint(errs.New(errs.Usage, "no such name"), "use another")
	}
	return nil
}

func (r recorder) Remove(_ context.Context, name string) error {
	r.note("remove", name)
	return nil
}

func (r recorder) Mount(_ context.Context, name, id string) (string, error) {
	r.note("mount", name, id)
	return "/there/" + id, nil
}

func (r recorder) Unmount(_ context.Context, name, id string) error {
	r.note("unmount", name, id)
	return nil
}

func (r recorder) Path(_ context.Context, name string) (string, error) {
	r.note("path", name)
	return "/there", nil
}

func (r recorder) Get(_ context.Context, name string) (Volume, error) {
	r.note("get", name)
	if name != "known" {
		return Volume{}, errs.New(errs.NotFound, "no volume %s", name)
	}
	return Volume{Name: name, Mountpoint: "/there", Status: map[string]any{"dirty": 4096}}, nil
}

func (r recorder) List(context.Context) ([]Volume, error) {
	r.note("list")
	return nil, nil
}

func volumes() []Volume { return []Volume{{Name: "old"}} }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// post sends a request to a socket as an engine does, and returns the reply.
func post(t *testing.T, socket, path, body string) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Post("http://plugin"+path, contentType, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// serving claims a name and answers on it until the test ends or stop is called.
func serving(t *testing.T, dir string, d Driver) (s *Socket, stop func()) {
	t.Helper()
	s, err := Claim(t.Context(), dir, "dm", Owner{Home: "/home", PID: 1})
	if err != nil {
		t.Fatal(err)
	}
	return s, running(t, func(ctx context.Context) error { return s.Serve(ctx, d, quiet()) })
}

func running(t *testing.T, serve func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx) }()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// Every request of the protocol, as Docker writes it and reads the answer.
func TestProtocol(t *testing.T) {
	r := recorder{make(chan string, 10)}
	s, _ := serving(t, t.TempDir(), r)
	for _, c := range []struct{ path, body, asked, want string }{
		{"/Plugin.Activate", "", "", `{"Implements":["VolumeDriver"]}`},
		{"/VolumeDriver.Capabilities", "{}", "", `{"Capabilities":{"Scope":"local"}}`},
		{"/VolumeDriver.Create", `{"Name":"a.b","Opts":{"from":"hub/x/y"}}`, "create a.b hub/x/y", `{}`},
		{"/VolumeDriver.Create", `{"Name":"bad","Opts":null}`, "create bad ", `{"Err":"dm: no such name (use another)"}`},
		{"/VolumeDriver.Get", `{"Name":"known"}`, "get known", `{"Volume":{"Name":"known","Mountpoint":"/there","Status":{"dirty":4096}}}`},
		{"/VolumeDriver.Get", `{"Name":"other"}`, "get other", `{"Err":"dm: no volume other"}`},
		{"/VolumeDriver.List", `{}`, "list", `{"Volumes":[]}`},
		{"/VolumeDriver.Path", `{"Name":"known"}`, "path known", `{"Mountpoint":"/there"}`},
		{"/VolumeDriver.Mount", `{"Name":"known","ID":"7"}`, "mount known 7", `{"Mountpoint":"/there/7"}`},
		{"/VolumeDriver.Unmount", `{"Name":"known","ID":"7"}`, "unmount known 7", `{}`},
		{"/VolumeDriver.Remove", `{"Name":"known"}`, "remove known", `{}`},
		{pathOwner, `{}`, "", `{"Owner":{"Home":"/home","PID":1,"StandIn":false}}`},
		{pathRetire, `{}`, "", `{"Err":"dm: a dm server answers here, which does not end because another asks"}`},
	} {
		if got := post(t, s.Path(), c.path, c.body); got != c.want {
			t.Errorf("%s %s is answered with %s, want %s", c.path, c.body, got, c.want)
		}
		if c.asked != "" {
			if got := <-r.asked; got != c.asked {
				t.Errorf("%s asked the driver %q, want %q", c.path, got, c.asked)
			}
		}
	}
	for _, bad := range []string{"{", `{"Name":7}`, `{"Name":"` + strings.Repeat("x", maxRequest) + `"}`} {
		if got := post(t, s.Path(), "/VolumeDriver.Create", bad); !strings.Contains(got, `"Err":"dm: read Docker's request`) {
			t.Errorf("%.20s is answered with %s", bad, got)
		}
	}
}

// A name that no engine has met can go without being missed; one that a stand-in held, or an engine has asked, cannot.
func TestKnown(t *testing.T) {
	dir := t.TempDir()
	s, stop := serving(t, dir, recorder{make(chan string, 1)})
	post(t, s.Path(), pathOwner, "")
	if s.Known() {
		t.Error("another server's question makes a name known")
	}
	post(t, s.Path(), "/Plugin.Activate", "")
	if !s.Known() {
		t.Error("an engine has asked, and does not know the name")
	}
	stop()
	again, err := Claim(t.Context(), dir, "dm", Owner{})
	if err != nil || !again.Known() {
		t.Errorf("after a server that an engine has asked: %v, %v", again.Known(), err)
	}
	if err := again.Remove(); err != nil {
		t.Error(err)
	}
	// A stand-in without a name ends by itself.
	if err := again.ServeDown(t.Context(), volumes, quiet()); err != nil {
		t.Error(err)
	}
}

// A name has one server; what a server leaves is taken over, by a stand-in and from it.
func TestClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plugins")
	s, stop := serving(t, dir, recorder{make(chan string, 1)})
	info, err := os.Lstat(s.Path())
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	_, err = Claim(t.Context(), dir, "dm", Owner{Home: "/other"})
	if errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "the dm server on /home (pid 1)") {
		t.Errorf("a second claim: %v", err)
	}
	file, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	file.Fd() // makes it blocking, as handing it to another process does
	stop()
	standIn, err := Resume(file, s.Path(), s.FileID(), Owner{Home: "/home", PID: 2, StandIn: true})
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	waitDown := running(t, func(ctx context.Context) error { return standIn.ServeDown(ctx, volumes, quiet()) })
	const cure = "the dm server on /home is not running (start it with 'dm cluster init --home /home'"
	for _, op := range []string{"Create", "Remove", "Mount", "Path", "Get"} {
		if got := post(t, s.Path(), "/VolumeDriver."+op, `{"Name":"a"}`); !strings.Contains(got, cure) {
			t.Errorf("%s without a server: %s", op, got)
		}
	}
	if got := post(t, s.Path(), "/VolumeDriver.Get", `{"Name":"old"}`); got != `{"Volume":{"Name":"old"}}` {
		t.Errorf("a volume that the server had: %s", got)
	}
	if got := post(t, s.Path(), "/VolumeDriver.List", ""); got != `{"Volumes":[{"Name":"old"}]}` {
		t.Errorf("the volumes that the server had: %s", got)
	}
	// An engine must be able to load the plugin, and to let containers go.
	for _, op := range []string{"/Plugin.Activate", "/VolumeDriver.Capabilities", "/VolumeDriver.Unmount"} {
		if got := post(t, s.Path(), op, `{"Name":"a"}`); strings.Contains(got, "Err") {
			t.Errorf("%s without a server: %s", op, got)
		}
	}
	again, _ := serving(t, dir, recorder{make(chan string, 1)})
	waitDown() // it was asked to retire
	if got := post(t, again.Path(), pathOwner, ""); !strings.Contains(got, `"StandIn":false`) {
		t.Errorf("after a second claim %s answers", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the plugin directory: %v, %v", left, err)
	}
}

// What a crash or somebody else left at the name.
func TestClaimLeftovers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dm.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := Claim(t.Context(), dir, "dm", Owner{})
	if err != nil {
		t.Fatalf("with a dead socket: %v", err)
	}
	s.Close()
	for _, remove := range []func() error{
		func() error { return RemoveDead(t.Context(), dir, "dm") },
		func() error { return Retire(t.Context(), dir, "dm", "/home") },
	} {
		if err := remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a dead socket is still there: %v", err)
		}
		if s, err = Claim(t.Context(), dir, "dm", Owner{}); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := &http.Server{Handler: http.NotFoundHandler()}
	if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	go other.Serve(l)
	defer other.Close()
	if _, err := Claim(t.Context(), dir, "dm", Owner{}); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "not a dm server") {
		t.Errorf("with another product's socket: %v", err)
	}
	if err := Retire(t.Context(), dir, "dm", "/home"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another product's socket was removed: %v", err)
	}
	for _, name := range []string{"", "a/b", "..", "-x", strings.Repeat("x", 64)} {
		if _, err := Claim(t.Context(), dir, name, Owner{}); errs.KindOf(err) != errs.Usage {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// What a stand-in answers for ends with its socket.
func TestRetire(t *testing.T) {
	dir := t.TempDir()
	s, err := Claim(t.Context(), dir, "dm", Owner{Home: "/home", StandIn: true})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.ServeDown(t.Context(), volumes, quiet()) }()
	if err := errors.Join(Retire(t.Context(), dir, "dm", "/other"), RemoveDead(t.Context(), dir, "dm")); err != nil {
		t.Error(err)
	}
	if got := post(t, s.Path(), pathOwner, ""); !strings.Contains(got, "/home") {
		t.Errorf("another server's stand-in retired: %s", got)
	}
	if err := Retire(t.Context(), dir, "dm", "/home"); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"Name":"a","ID":"b","Opts":{"c":"d"}}`))
	f.Add([]byte(`[]`))
	h := (&server{driver: Down{Volumes: volumes}, log: quiet()}).handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		w := &memoryWriter{header: http.Header{}}
		req, err := http.NewRequest(http.MethodPost, "http://plugin/VolumeDriver.Create", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(w, req)
		var rep reply
		if err := json.Unmarshal(w.body.Bytes(), &rep); err != nil || rep.Err == "" {
			t.Errorf("answer %q: %v", w.body.Bytes(), err)
		}
	})
}

type memoryWriter struct {
	header http.Header
	body   bytes.Buffer
}

func (w *memoryWriter) Header() http.Header         { return w.header }
func (w *memoryWriter) Write(p []byte) (int, error) { return w.body.Write(p) }
func (w *memoryWriter) WriteHeader(int)             {}
