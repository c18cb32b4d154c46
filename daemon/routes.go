package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"dm/api"
	"dm/internal/errs"
)

// routes returns the handler of all operations.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	for op, h := range s.handlers() {
		mux.Handle("POST "+api.PathPrefix+string(op), s.operation(op, h))
	}
	mux.HandleFunc("/", s.unknown)
	return mux
}

// handler runs one operation.
type handler func(r *http.Request, w http.ResponseWriter) error

func (s *server) handlers() map[api.Op]handler {
	return map[api.Op]handler{
		api.OpVersion:      plain(s.version),
		api.OpServer:       plain(s.serverStatus),
		api.OpStop:         s.stopServer,
		api.OpInit:         plain(s.initDot),
		api.OpFind:         plain(s.find),
		api.OpPath:         plain(s.path),
		api.OpList:         plain(s.list),
		api.OpStatus:       plain(s.status),
		api.OpCommit:       streaming(s.commit),
		api.OpLog:          streaming(s.logOf),
		api.OpShow:         plain(s.showCommit),
		api.OpDiff:         streaming(s.diff),
		api.OpCat:          bytesOut(s.cat),
		api.OpBranches:     plain(s.listBranches),
		api.OpDeleteBranch: plain(s.deleteBranch),
		api.OpCheckout:     plain(s.checkout),
		api.OpReset:        plain(s.reset),
		api.OpRestore:      plain(s.restore),
		api.OpTags:         plain(s.listTags),
		api.OpTag:          plain(s.tag),
		api.OpDeleteTag:    plain(s.deleteTag),
		api.OpMount:        plain(s.mount),
		api.OpUnmount:      plain(s.unmount),
		api.OpMounts:       plain(s.listMounts),
		api.OpShowDot:      plain(s.showDot),
		api.OpDeleteDot:    plain(s.deleteDot),
		api.OpRenameDot:    plain(s.renameDot),
		api.OpImport:       streaming(s.importDir),
		api.OpExport:       bytesOut(s.export),
		api.OpGC:           streaming(s.gc),
		api.OpFsck:         streaming(s.fsck),
		api.OpProbeRemote:  plain(s.probeRemote),
		api.OpCheckRemote:  plain(s.checkRemote),
		api.OpRemoteDots:   plain(s.remoteDots),
		api.OpRemoteDelete: plain(s.deleteRemoteDot),
		api.OpShares:       plain(s.shares),
		api.OpSetUpstream:  plain(s.setUpstream),
		api.OpPush:         streaming(s.push),
		api.OpPull:         streaming(s.pull),
		api.OpClone:        streaming(s.clone),
		api.OpTransfers:    plain(s.listTransfers),
		api.OpPrune:        streaming(s.prune),
		api.OpAutoCommit:   plain(s.autoCommit),
		api.OpUsage:        plain(s.usage),
		api.OpRestart:      plain(s.restartStale),
	}
}

// operation wraps what every operation needs: the gate, a log line, and an answer even to our own mistakes.
func (s *server) operation(op api.Op, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		r.Body = http.MaxBytesReader(w, r.Body, api.MaxRequest)
		if op != api.OpStop {
			if err := s.ops.enter(); err != nil {
				api.NewStream(w).Fail(err) //nolint:errcheck // the client is gone then
				return
			}
			defer s.ops.leave()
		}
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("operation panicked", "op", op, "panic", p, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		err := h(r, w)
		switch {
		case err != nil:
			s.log.Warn("operation failed", "op", op, "kind", errs.KindOf(err), "err", err, "took", time.Since(begin))
		case op != api.OpVersion:
			s.log.Info("operation", "op", op, "took", time.Since(begin))
		}
	})
}

// unknown answers a client of another version.
func (s *server) unknown(w http.ResponseWriter, r *http.Request) {
	err := errs.New(errs.Usage, "the server (dm %s) does not know the operation %q", api.Version, r.URL.Path)
	if v := r.Header.Get(api.VersionHeader); v != "" && v != api.Version {
		err = errs.WithHint(errs.New(errs.Conflict, "this is dm %s, but the server is dm %s and does not know %q", v, api.Version,
			strings.TrimPrefix(r.URL.Path, api.PathPrefix)), "restart the server: 'dm cluster stop', then 'dm cluster init'")
	}
	api.NewStream(w).Fail(err) //nolint:errcheck // the client is gone then
}

// decode reads a request's body. Fields this server does not know are refused: to ignore one could be to do the opposite
// of what a newer client asked.
func decode[Req any](r *http.Request) (Req, error) {
	var req Req
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return req, errs.New(errs.Usage, "read the request: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, errs.New(errs.Usage, "decode the request: %w", err)
	}
	return req, nil
}

// plain makes a handler of a function from request to result.
func plain[Req, Res any](fn func(context.Context, Req) (Res, error)) handler {
	return streaming(func(ctx context.Context, req Req, _ *api.Stream) (Res, error) { return fn(ctx, req) })
}

// streaming makes a handler of a function that may send progress and items before its result.
func streaming[Req, Res any](fn func(context.Context, Req, *api.Stream) (Res, error)) handler {
	return func(r *http.Request, w http.ResponseWriter) error {
		stream := api.NewStream(w)
		req, err := decode[Req](r)
		var res Res
		if err == nil {
			res, err = fn(r.Context(), req, stream)
		}
		if err != nil {
			stream.Fail(err) //nolint:errcheck // the client is gone then; the operation's own error is what counts
			return err
		}
		return stream.Result(res)
	}
}

// bytesOut makes a handler of a function that writes plain bytes.
func bytesOut[Req any](fn func(context.Context, Req, *api.Bytes) error) handler {
	return func(r *http.Request, w http.ResponseWriter) error {
		out := api.NewBytes(w)
		req, err := decode[Req](r)
		if err == nil {
			err = fn(r.Context(), req, out)
		}
		out.Close(err)
		return err
	}
}

func (s *server) version(context.Context, api.Empty) (api.VersionResult, error) {
	return ownVersion(), nil
}

func ownVersion() api.VersionResult {
	return api.VersionResult{Version: api.Version, Revision: api.Revision(), Go: runtime.Version()}
}
