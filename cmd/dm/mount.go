package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type mountCmd struct {
	*app
	listing
	create   bool
	readOnly bool
}

func newMount(a *app) *cobra.Command {
	c := &mountCmd{app: a}
	cmd := &cobra.Command{
		Use:   "mount [-r] [<dot>[@branch][.subdot] | <dot>:<revision>] [dir]",
		Short: "Show a dot, a subdot or a commit (read-only) at a path; without arguments: list such mounts",
		Long: "Show a dot, a subdot or a commit (read-only) at a path; without arguments: list such mounts.\n\n" +
			"A mount without @branch follows checkout. Mounts stay until 'dm umount': a server that starts makes them again.",
		Args:              argCount(0, 2),
		RunE:              c.run,
		ValidArgsFunction: a.completeDots,
	}
	c.listing.register(cmd)
	cmd.Flags().BoolVarP(&c.create, "create", "r", false, "create the dot and subdot if they are not there")
	cmd.Flags().BoolVar(&c.readOnly, "read-only", false, "refuse writes through this mount")
	return cmd
}

func (c *mountCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 1:
		return usage(cmd, "too few arguments: use '%s'", cmd.UseLine())
	case len(args) == 0 && (c.create || c.readOnly):
		return usage(cmd, "there is nothing to mount: use '%s'", cmd.UseLine())
	case len(args) == 0:
		return c.list(cmd, server)
	case c.json || c.scripting:
		return usage(cmd, "--json and --scripting are for the list of mounts")
	}
	dir, err := realDir(args[1])
	if err != nil {
		return err
	}
	req := api.MountRequest{Dir: api.Path(dir), Create: c.create, ReadOnly: c.readOnly}
	var isCommit bool
	if req.Name, req.Revision, isCommit = strings.Cut(args[0], ":"); isCommit && req.Revision == "" {
		return usage(cmd, "%q names no revision behind the ':'", args[0])
	}
	if isCommit && c.create {
		return usage(cmd, "a commit is mounted read-only: --create has nothing to create")
	}
	_, err = server.Mount(cmd.Context(), req)
	return err
}

func (c *mountCmd) list(cmd *cobra.Command, server *api.Client) error {
	r, err := server.Mounts(cmd.Context())
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r.Mounts)
	}
	for _, m := range r.Mounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		if c.scripting {
			err = scriptLine(c.out, m.What, string(m.Dir), mode)
		} else {
			_, err = fmt.Fprintf(c.out, "%s on %s (%s)\n", m.What, path(m.Dir), mode)
		}
		if err != nil {
			return written(err)
		}
	}
	return nil
}

type umountCmd struct{ *app }

func newUmount(a *app) *cobra.Command {
	c := &umountCmd{a}
	return &cobra.Command{
		Use:   "umount <dir>",
		Short: "Take away what 'dm mount' made",
		Args:  argCount(1, 1),
		RunE:  c.run,
	}
}

func (c *umountCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	dir, err := realDir(args[0])
	if err != nil {
		return err
	}
	return server.Unmount(cmd.Context(), api.UnmountRequest{Dir: api.Path(dir)})
}

// realDir returns the absolute path of dir without symlinks, as the kernel names what is mounted there. What cannot be
// looked at (a mount whose server is gone) keeps the name it has.
func realDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", errs.New(errs.Usage, "find the directory %s: %w", dir, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}
