package dockervol

import (
	"context"

	"dm/internal/errs"
)

// Down is the Driver while the server is away. To mount, create or remove a volume is an error that names the cure.
//
// It knows the volumes all the same: an engine that starts a container asks for its volumes first, and says of one that is
// not known that there is no such volume, whatever the error was.
type Down struct {
	Home    string          // the state directory of the server that is away
	Volumes func() []Volume // that it had
}

func (d Down) err() error {
	return errs.WithHint(errs.New(errs.Unreachable, "the dm server on %s is not running", d.Home),
		"start it with 'dm cluster init --home %s', or with 'systemctl start dm' where it is a service", d.Home)
}

// Create implements Driver.
func (d Down) Create(context.Context, string, map[string]string) error { return d.err() }

// Remove implements Driver.
func (d Down) Remove(context.Context, string) error { return d.err() }

// Mount implements Driver.
func (d Down) Mount(context.Context, string, string) (string, error) { return "", d.err() }

// Unmount implements Driver. What was mounted went with the server, and a container that ends must be let go.
func (d Down) Unmount(context.Context, string, string) error { return nil }

// Path implements Driver.
func (d Down) Path(context.Context, string) (string, error) { return "", d.err() }

// Get implements Driver.
func (d Down) Get(_ context.Context, name string) (Volume, error) {
	for _, v := range d.Volumes() {
		if v.Name == name {
			return v, nil
		}
	}
	return Volume{}, d.err()
}

// List implements Driver.
func (d Down) List(context.Context) ([]Volume, error) { return d.Volumes(), nil }
