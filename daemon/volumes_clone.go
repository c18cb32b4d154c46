package daemon

import (
	"context"

	"dm/dot"
	"dm/internal/errs"
)

// cloneFor makes the dot n as a clone of one at a remote, for a volume that is created with from=.
func (s *server) cloneFor(_ context.Context, n dot.Name, from cloneSource, _ dot.CacheMode) error {
	return errs.WithHint(errs.New(errs.NotFound, "dot %s is not here, and this server knows no remote %s", n.DotName(), from.Remote),
		"clone it first: dm clone %s %s --local-name %s", from.Remote, from.Name, n.DotName())
}
