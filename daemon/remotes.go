package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
	"dm/remote/hubremote"
	"dm/remote/place"
)

// remotes is the remotes that this server has open. They stay open until it ends, so that a push that has nothing to send
// needs no new connection. Keys are in memory only.
type remotes struct {
	dir string // for what each keeps, HOME/cache

	mu   sync.Mutex
	open map[api.Remote]remote.Remote // without names
}

// maxOpen is how many remotes stay open. With more, all that are not in use could be closed; nobody has so many.
const maxOpen = 64

// get returns a remote, and what the caller has to call when it is not needed any more.
func (r *remotes) get(a api.Remote) (rem remote.Remote, done func(), err error) {
	a.Name = ""
	r.mu.Lock()
	defer r.mu.Unlock()
	if rem, ok := r.open[a]; ok {
		return rem, func() {}, nil
	}
	sum := sha256.Sum256([]byte(a.URL))
	rem, err = place.Open(place.Address{
		URL: a.URL, Key: a.Key, Fingerprint: a.Fingerprint, CacheDir: r.dir + "/" + hex.EncodeToString(sum[:8]),
	})
	if err != nil {
		return nil, nil, err
	}
	if len(r.open) >= maxOpen {
		return rem, func() { rem.Close() }, nil //nolint:errcheck // idle connections
	}
	if r.open == nil {
		r.open = map[api.Remote]remote.Remote{}
	}
	r.open[a] = rem
	return rem, func() {}, nil
}

// dot returns a remote and a dot there, and what the caller has to call when they are not needed any more.
func (r *remotes) dot(a api.Remote, name string) (rem remote.Remote, d remote.Dot, done func(), err error) {
	if rem, done, err = r.get(a); err != nil {
		return nil, nil, nil, err
	}
	if d, err = rem.Dot(name); err != nil {
		done()
	}
	return rem, d, done, err
}

// close closes all. Nothing may be in use any more.
func (r *remotes) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []error
	for a, rem := range r.open {
		all = append(all, rem.Close())
		delete(r.open, a)
	}
	return errors.Join(all...)
}

// probeRemote says what an address is, and finds out the fingerprint of a hub's certificate if the system does not trust it.
func (s *server) probeRemote(ctx context.Context, req api.ProbeRequest) (r api.ProbeResult, err error) {
	kind, err := place.KindOf(req.URL)
	if err != nil {
		return r, err
	}
	r = api.ProbeResult{Kind: string(kind), User: place.User(req.URL), NeedsKey: place.NeedsKey(req.URL)}
	if kind != place.Hub {
		return r, nil
	}
	c, err := hubremote.Parse(req.URL)
	if err != nil || !strings.HasPrefix(c.URL, "https:") {
		return r, err
	}
	fingerprint, trusted, err := hubremote.Fingerprint(ctx, c.URL)
	if err == nil && !trusted {
		r.Fingerprint = fingerprint
	}
	return r, err
}

// checkRemote asks a remote that is to be added.
func (s *server) checkRemote(ctx context.Context, req api.CheckRemoteRequest) (api.Empty, error) {
	if err := dot.CheckName("remote", req.Remote.Name); err != nil {
		return api.Empty{}, err
	}
	// Not one that is open already: what is asked is whether the key is still valid.
	rem, err := place.Open(place.Address{URL: req.Remote.URL, Key: req.Remote.Key, Fingerprint: req.Remote.Fingerprint})
	if err != nil {
		return api.Empty{}, err
	}
	defer rem.Close() //nolint:errcheck // idle connections
	return api.Empty{}, rem.Check(ctx)
}

// remoteDots lists the dots at a remote.
func (s *server) remoteDots(ctx context.Context, req api.RemoteDotsRequest) (r api.RemoteDotsResult, err error) {
	r.Dots = []api.RemoteDot{}
	rem, done, err := s.remotes.get(req.Remote)
	if err != nil {
		return r, err
	}
	defer done()
	list, err := rem.Dots(ctx)
	if err != nil {
		return r, err
	}
	for _, info := range list {
		d, err := rem.Dot(info.Name)
		if err != nil {
			return r, err
		}
		refs, err := d.Refs(ctx)
		if err != nil {
			return r, err
		}
		row := api.RemoteDot{Name: info.Name, ReadOnly: info.ReadOnly, Branches: []api.Branch{}, Tags: []api.Tag{}}
		for _, ref := range slices.Sorted(maps.Keys(refs)) {
			if name, ok := strings.CutPrefix(ref, remote.Heads); ok {
				row.Branches = append(row.Branches, api.Branch{Name: name, Head: refs[ref].String()})
			} else if name, ok := strings.CutPrefix(ref, remote.Tags); ok {
				row.Tags = append(row.Tags, api.Tag{Name: name, Commit: refs[ref].String()})
			}
		}
		r.Dots = append(r.Dots, row)
	}
	return r, nil
}

// sharer is a remote that has users: a hub.
type sharer interface {
	Shares(ctx context.Context, name string) ([]hubproto.Share, error)
	Share(ctx context.Context, name string, s hubproto.Share) error
}

// shares says who has access to a dot at a hub, after a change if one is asked for.
func (s *server) shares(ctx context.Context, req api.SharesRequest) (r api.SharesResult, err error) {
	r.Shares = []api.Share{}
	rem, done, err := s.remotes.get(req.Remote)
	if err != nil {
		return r, err
	}
	defer done()
	hub, ok := rem.(sharer)
	if !ok {
		return r, errs.New(errs.Usage, "remote %s is no hub: who may read and write it, its owner says by other means", req.Remote.Name)
	}
	if req.User != "" {
		if err := hub.Share(ctx, req.Dot, hubproto.Share{User: req.User, Access: hubproto.Access(req.Access)}); err != nil {
			return r, err
		}
	}
	all, err := hub.Shares(ctx, req.Dot)
	for _, share := range all {
		r.Shares = append(r.Shares, api.Share{User: share.User, Access: string(share.Access)})
	}
	return r, err
}

func (s *server) setUpstream(ctx context.Context, req api.UpstreamRequest) (api.Empty, error) {
	if req.Name != "" {
		if err := remote.CheckDot(req.Name); err != nil {
			return api.Empty{}, err
		}
	}
	return api.Empty{}, s.withDot(req.Dot, func(n dot.Name) error {
		return s.dots.SetUpstream(ctx, n, dot.Upstream{Remote: req.Remote, Name: req.Name})
	})
}

// counterpart returns which dot at a remote a dot goes to: the one asked for, the one it went to before, or one of its own
// name in the user's namespace. remember says that the dot has no upstream there yet.
func (s *server) counterpart(ctx context.Context, n dot.Name, rem api.Remote, asked string) (u dot.Upstream, remember bool, err error) {
	if err := dot.CheckName("remote", rem.Name); err != nil {
		return u, false, err
	}
	info, err := s.dots.Info(ctx, dot.Name{Namespace: n.Namespace, Dot: n.Dot})
	if err != nil {
		return u, false, err
	}
	before, has := info.Upstream(rem.Name)
	switch {
	case asked != "":
		u = dot.Upstream{Remote: rem.Name, Name: remoteName(asked, rem)}
	case has:
		u = before
	default:
		u = dot.Upstream{Remote: rem.Name, Name: remoteName(info.Name, rem)}
		if info.Namespace != dot.DefaultNamespace {
			u.Name = info.Namespace + "/" + info.Name
		}
	}
	return u, !has, remote.CheckDot(u.Name)
}

// remoteName gives a dot's name the namespace that it has at a remote if none is written: that of the hub's user.
func remoteName(name string, rem api.Remote) string {
	if strings.Contains(name, "/") {
		return name
	}
	if user := place.User(rem.URL); user != "" {
		return user + "/" + name
	}
	return dot.DefaultNamespace + "/" + name
}

// local returns the store as package remote wants it.
func (s *server) local() remote.Local { return remote.FromStore(s.store) }

func hexOrEmpty(id object.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// deleteRemoteDot deletes a dot at a remote; what is here of it stays.
func (s *server) deleteRemoteDot(ctx context.Context, req api.RemoteDeleteRequest) (api.Empty, error) {
	rem, done, err := s.remotes.get(req.Remote)
	if err != nil {
		return api.Empty{}, err
	}
	defer done()
	return api.Empty{}, rem.Delete(ctx, req.Dot)
}
