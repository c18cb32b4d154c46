package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type fsckCmd struct {
	*app
	listing
	quick bool
}

func newFsck(a *app) *cobra.Command {
	c := &fsckCmd{app: a}
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Verify everything in the store; damage ends with exit code 7",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.listing.register(cmd)
	cmd.Flags().BoolVar(&c.quick, "quick", false, "check the index and what is reachable, but do not read every byte")
	return cmd
}

func (c *fsckCmd) run(cmd *cobra.Command, _ []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	p := newProgress(c.err)
	r, err := server.Fsck(cmd.Context(), api.FsckRequest{Quick: c.quick}, p.show)
	p.end()
	if err != nil {
		return err
	}
	switch {
	case c.json:
		err = writeJSON(c.out, r)
	case c.scripting:
		for _, d := range r.Damaged {
			err = scriptLine(c.out, d)
		}
	default:
		for _, d := range r.Damaged {
			fmt.Fprintln(c.out, oneLine(d))
		}
		_, err = fmt.Fprintf(c.out, "verified %d objects, %s in %d packs: %d damaged\n",
			r.Objects, amount(r.Bytes, true), r.Packs, len(r.Damaged))
	}
	if err != nil {
		return written(err)
	}
	if len(r.Damaged) > 0 {
		return errs.WithHint(errs.New(errs.Damaged, "the store has damage in %d places", len(r.Damaged)),
			"commits that do not need the damaged objects are whole; take the rest from a backup or from a machine that has them")
	}
	return nil
}
