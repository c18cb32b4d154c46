package hub

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote/hubproto"
	"dm/store/pack"
)

const (
	// stall is how long a client may keep the hub waiting for the next byte of a pack, or for room to write to.
	stall = 2 * time.Minute
	// requestWait is how long a client may take for a whole request of another kind.
	requestWait = time.Minute
)

// route is what is done at a path. An error it returns is answered, unless the answer has begun.
type route func(w http.ResponseWriter, r *http.Request, who asker) error

// Handler answers a hub's clients.
func (h *Hub) Handler() http.Handler {
	mux := http.NewServeMux()
	add := func(pattern string, fn route) { mux.Handle(pattern, h.serve(pattern, fn)) }
	const dot = hubproto.Root + "dots/{ns}/{dot}"
	add("GET "+hubproto.Root+"{$}", h.whoAmI)
	add("GET "+hubproto.Root+"dots", h.serveList)
	add("DELETE "+dot, h.serveDelete)
	add("GET "+dot+"/refs", h.serveRefs)
	add("POST "+dot+"/refs", h.serveMove)
	add("POST "+dot+"/missing", h.serveMissing)
	add("POST "+dot+"/packs", h.transfer(h.servePack))
	add("POST "+dot+"/load", h.transfer(h.serveLoad))
	add("GET "+dot+"/shares", h.serveShares)
	add("POST "+dot+"/shares", h.serveShare)
	mux.Handle("GET /metrics", h.stats.handler())
	mux.HandleFunc("GET /healthz", h.serveHealth)
	return mux
}

// statusWriter remembers what was answered.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// serve finds out who asks, and answers errors.
func (h *Hub) serve(pattern string, fn route) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(rw)
		if r.Body != http.NoBody {
			c.SetReadDeadline(time.Now().Add(requestWait))
			r.Body = &timedBody{r.Body, c, 0}
		}
		w := &statusWriter{ResponseWriter: &patientWriter{rw, c}}
		h.gates.began()
		defer h.gates.ended()
		defer func() {
			p := recover()
			began := w.status != 0
			if p != nil && p != http.ErrAbortHandler {
				h.log.Error("request failed", "route", pattern, "panic", p, "stack", string(debug.Stack()))
				if !began {
					answerError(w, errs.New(errs.Internal, "the hub has made a mistake"))
				}
			}
			h.stats.answered(pattern, w.status)
			if p != nil && began {
				panic(http.ErrAbortHandler) // the client must not take it for the whole
			}
		}()
		who, ok := h.login(w, r)
		if !ok {
			return
		}
		err := fn(w, r, who)
		switch {
		case err == nil:
		case w.status != 0:
			h.log.Warn("answer broken off", "route", pattern, "user", who.name(), "error", err)
			panic(http.ErrAbortHandler)
		default:
			h.log.Info("request refused", "route", pattern, "user", who.name(), "error", err)
			answerError(w, err)
		}
	})
}

// login finds out who asks. ok is false where that has been answered already.
func (h *Hub) login(w http.ResponseWriter, r *http.Request) (who asker, ok bool) {
	name, key, has := r.BasicAuth()
	if !has {
		return "", true
	}
	try := attempt{address(r), name}
	if !nameRE.MatchString(name) {
		try.user = "" // no user has that name; it is not worth remembering
	}
	if wait := h.gates.mayLogin(try); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		answerStatus(w, http.StatusTooManyRequests, errs.New(errs.NotAllowed, "too many wrong keys from %s, wait for %s",
			try.address, wait.Round(time.Second)))
		return "", false
	}
	good, err := h.authentic(r.Context(), name, key)
	if err != nil {
		h.log.Error("login cannot be checked", "error", err)
		answerError(w, err)
		return "", false
	}
	if good {
		h.gates.loggedIn(try)
		return asker(name), true
	}
	h.gates.loginFailed(try)
	h.stats.logins.Inc()
	h.log.Warn("login failed", "audit", true, "user", printable(name), "address", try.address)
	w.Header().Set("WWW-Authenticate", `Basic realm="dm hub"`)
	answerStatus(w, http.StatusUnauthorized, errs.New(errs.NotAllowed, "Permission denied. Please check that your API key is still valid."))
	return "", false
}

func printable(s string) string {
	if nameRE.MatchString(s) {
		return s
	}
	return "(not a name)"
}

func answerError(w http.ResponseWriter, err error) {
	status := errs.KindOf(err).HTTPStatus()
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		status = http.StatusRequestEntityTooLarge
		err = errs.New(errs.Usage, "the request is larger than the %d bytes that are allowed", tooLarge.Limit)
	}
	answerStatus(w, status, err)
}

func answerStatus(w http.ResponseWriter, status int, err error) {
	kind, msg := errs.KindOf(err), err.Error()
	if kind == errs.Internal {
		msg = "the hub has met an error, which its log tells more about"
	}
	b, _ := json.Marshal(hubproto.Error{Kind: kind.String(), Message: msg, Hint: errs.HintOf(err)})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// transfer bounds how many of fn run at a time.
func (h *Hub) transfer(fn route) route {
	return func(w http.ResponseWriter, r *http.Request, who asker) error {
		leave, ok := h.gates.enter(r.Context(), who)
		if !ok {
			w.Header().Set("Retry-After", "5")
			answerStatus(w, http.StatusServiceUnavailable, errs.New(errs.Unreachable, "the hub is busy"))
			return nil
		}
		defer leave()
		return fn(w, r, who)
	}
}

// timedBody gives up reading where nothing comes for a while.
type timedBody struct {
	io.ReadCloser
	c    *http.ResponseController
	each time.Duration // that one read may take; 0: there is a time for all of them
}

func (b *timedBody) Read(p []byte) (int, error) {
	if b.each > 0 {
		b.c.SetReadDeadline(time.Now().Add(b.each))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		// What is done now may take its time. The server goes on reading to see whether the client hangs up, and would take a
		// deadline for that.
		b.c.SetReadDeadline(time.Time{})
	}
	return n, err
}

// patientWriter gives up writing where nothing goes for a while.
type patientWriter struct {
	http.ResponseWriter
	c *http.ResponseController
}

func (w *patientWriter) Write(b []byte) (int, error) {
	w.c.SetWriteDeadline(time.Now().Add(stall))
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func answer(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(append(b, '\n'))
	return err
}

// question reads a message, strictly.
func question(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, hubproto.MaxJSON))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return errs.New(errs.Usage, "read request: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errs.New(errs.Usage, "read request: there is more after the message")
	}
	return nil
}

func dotOf(r *http.Request) string { return r.PathValue("ns") + "/" + r.PathValue("dot") }

func (h *Hub) whoAmI(w http.ResponseWriter, _ *http.Request, who asker) error {
	return answer(w, hubproto.WhoAmI{User: string(who), Version: h.cfg.Version})
}

func (h *Hub) serveHealth(w http.ResponseWriter, r *http.Request) {
	if err := h.engine.healthy(r.Context()); err != nil {
		h.log.Error("hub is not healthy", "error", err)
		answerError(w, err)
		return
	}
	io.WriteString(w, "ok\n")
}

func (h *Hub) serveList(w http.ResponseWriter, r *http.Request, who asker) error {
	list, err := h.list(r.Context(), who)
	if err != nil {
		return err
	}
	return answer(w, hubproto.Dots{Dots: list})
}

func (h *Hub) serveDelete(w http.ResponseWriter, r *http.Request, who asker) error {
	if err := h.remove(r.Context(), who, dotOf(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Hub) serveRefs(w http.ResponseWriter, r *http.Request, who asker) error {
	refs, err := h.refs(r.Context(), who, dotOf(r))
	if err != nil {
		return err
	}
	m := hubproto.Refs{Refs: map[string]string{}}
	for name, id := range refs {
		m.Refs[name] = id.String()
	}
	return answer(w, m)
}

func (h *Hub) serveMove(w http.ResponseWriter, r *http.Request, who asker) error {
	var m hubproto.Move
	if err := question(w, r, &m); err != nil {
		return err
	}
	old, err := hubproto.DecodeID(m.Old)
	if err != nil {
		return err
	}
	id, err := hubproto.DecodeID(m.New)
	if err != nil {
		return err
	}
	if err := h.move(r.Context(), who, dotOf(r), m.Ref, old, id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Hub) serveMissing(w http.ResponseWriter, r *http.Request, who asker) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, hubproto.MaxIDs*object.IDSize))
	if err != nil {
		return errs.New(errs.Usage, "read request: %w", err)
	}
	ids, err := hubproto.DecodeIDs(b)
	if err != nil {
		return err
	}
	missing, err := h.missing(r.Context(), who, dotOf(r), ids)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", hubproto.ContentIDs)
	_, err = w.Write(hubproto.EncodeIDs(missing))
	return err
}

func (h *Hub) servePack(w http.ResponseWriter, r *http.Request, who asker) error {
	body := &timedBody{r.Body, http.NewResponseController(w), stall}
	st, err := h.takeIn(r.Context(), who, dotOf(r), http.MaxBytesReader(w, body, hubproto.MaxPack))
	h.stats.received.Add(float64(st.Bytes))
	if err != nil {
		return err
	}
	h.stats.objects.Add(float64(st.Objects))
	h.audit(who.name(), "pack received", "dot", dotOf(r), "objects", st.Objects, "bytes", st.Bytes, "adopted", st.Adopted)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Hub) serveLoad(w http.ResponseWriter, r *http.Request, who asker) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, hubproto.MaxLoad))
	if err != nil {
		return errs.New(errs.Usage, "read request: %w", err)
	}
	req, err := hubproto.DecodeLoad(b)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", hubproto.ContentPack)
	buf := bufio.NewWriterSize(w, 256<<10)
	out := pack.NewWriter(buf)
	err = h.load(r.Context(), who, dotOf(r), req, out)
	if err == nil {
		err = buf.Flush()
	}
	h.stats.sent.Add(float64(out.Size()))
	return err
}

func (h *Hub) serveShares(w http.ResponseWriter, r *http.Request, who asker) error {
	list, err := h.shares(r.Context(), who, dotOf(r))
	if err != nil {
		return err
	}
	return answer(w, hubproto.Shares{Shares: list})
}

func (h *Hub) serveShare(w http.ResponseWriter, r *http.Request, who asker) error {
	var s hubproto.Share
	if err := question(w, r, &s); err != nil {
		return err
	}
	if err := h.share(r.Context(), who, dotOf(r), s); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
