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
	quick  bool
	repair bool
	from   string
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
	cmd.Flags().BoolVar(&c.quick, "quick", false, "check the index, sizes, trees and commits, but do not read all chunks")
	cmd.Flags().BoolVar(&c.repair, "repair", false, "put damaged objects aside, so that the next commit that has them stores them again")
	cmd.Flags().StringVar(&c.from, "repair-from", "", "put damaged objects aside, and fetch these and missing ones from a `REMOTE`")
	cmd.RegisterFlagCompletionFunc("repair-from", a.completeRemotes) //nolint:errcheck // fails only for a flag that does not exist
	return cmd
}

func (c *fsckCmd) run(cmd *cobra.Command, _ []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	req := api.FsckRequest{Quick: c.quick, Repair: c.repair}
	if c.from != "" {
		rem, err := c.remote(c.from)
		if err != nil {
			return err
		}
		req.Repair, req.RepairFrom = true, &rem
		c.repair = true
	}
	p := newProgress(c.err)
	r, err := server.Fsck(cmd.Context(), req, p.show)
	p.end()
	if err != nil {
		return err
	}
	if err := c.print(r); err != nil {
		return err
	}
	if len(r.Damaged) == 0 {
		return nil
	}
	hint := "what is not listed is whole; put damaged objects aside with 'dm fsck --repair' and commit again what still has them"
	if c.from != "" {
		hint = "what is not listed is whole; remote " + c.from + " does not have the rest: try another, or commit again what still has it"
	} else if c.repair {
		hint = "what is not listed is whole; commit again what still has the objects that were put aside"
	}
	return errs.WithHint(errs.New(errs.Damaged, "the store has damage in %d places", len(r.Damaged)), "%s", hint)
}

func (c *fsckCmd) print(r api.FsckResult) error {
	if c.json {
		return writeJSON(c.out, r)
	}
	for _, d := range r.Damaged {
		if c.scripting {
			if err := scriptLine(c.out, "damaged", d.What, d.Object, d.Pack, d.Offset); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(c.out, oneLine(d.What))
	}
	for _, a := range r.Affected {
		if c.scripting {
			if err := scriptLine(c.out, "affected", a.Name, a.Commit, string(a.Path), a.Object); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(c.out, "%s, commit %.12s: %s is damaged\n", a.Name, a.Commit, path(a.Path))
	}
	if c.scripting {
		return nil
	}
	if r.Truncated {
		fmt.Fprintln(c.out, "... and more")
	}
	if c.repair {
		fmt.Fprintf(c.out, "found whole copies of %d objects, put %d aside\n", r.Recovered, r.PutAside)
	}
	if c.from != "" {
		fmt.Fprintf(c.out, "fetched %d objects from %s\n", r.Fetched, c.from)
	}
	_, err := fmt.Fprintf(c.out, "verified %d objects, %s in %d packs: %d damaged\n",
		r.Objects, amount(r.Bytes, true), r.Packs, len(r.Damaged))
	return written(err)
}
