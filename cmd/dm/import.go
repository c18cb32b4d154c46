package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type importCmd struct{ *app }

func newImport(a *app) *cobra.Command {
	c := &importCmd{a}
	return &cobra.Command{
		Use:   "import <dir | docker volume> <dot.subdot>",
		Short: "Copy a directory of the host, or a volume of Docker's own, into a subdot, with owners, modes, times, links and holes",
		Args:  argCount(2, 2),
		RunE:  c.run,
	}
}

func (c *importCmd) run(cmd *cobra.Command, args []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	req, err := importSource(args[0])
	if err != nil {
		return err
	}
	req.Name = args[1]
	p := newProgress(c.err)
	r, err := server.Import(cmd.Context(), req, p.show)
	p.end()
	if err != nil {
		return err
	}
	from := path(req.Dir)
	if req.Volume != "" {
		from = "the Docker volume " + req.Volume
	}
	fmt.Fprintf(c.err, "Imported %d files, %s, from %s\n", r.Files, amount(r.Bytes, true), from)
	return nil
}

// importSource says what is meant: a directory if there is one, or else, without a slash, a volume of Docker's.
func importSource(arg string) (req api.ImportRequest, err error) {
	_, err = os.Lstat(arg)
	if errors.Is(err, fs.ErrNotExist) && !strings.Contains(arg, "/") {
		return api.ImportRequest{Volume: arg}, nil
	}
	dir, err := filepath.Abs(arg)
	if err != nil {
		return req, errs.New(errs.Usage, "find the directory %s: %w", arg, err)
	}
	return api.ImportRequest{Dir: api.Path(dir)}, nil
}
