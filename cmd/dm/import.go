package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type importCmd struct{ *app }

func newImport(a *app) *cobra.Command {
	c := &importCmd{a}
	return &cobra.Command{
		Use:   "import <dir> <dot.subdot>",
		Short: "Copy a directory of the host into a subdot, with owners, modes, times, links and holes",
		Args:  argCount(2, 2),
		RunE:  c.run,
	}
}

func (c *importCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(args[0])
	if err != nil {
		return errs.New(errs.Usage, "find the directory %s: %w", args[0], err)
	}
	p := newProgress(c.err)
	r, err := server.Import(cmd.Context(), api.ImportRequest{Dir: api.Path(dir), Name: args[1]}, p.show)
	p.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Imported %d files, %s, from %s\n", r.Files, amount(r.Bytes, true), path(api.Path(dir)))
	return nil
}
