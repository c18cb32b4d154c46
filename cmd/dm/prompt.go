package main

import (
	"context"
	"fmt"
	"strings"

	"dm/internal/errs"
)

// confirm asks the user and returns nil only for an answer that begins with Y or y.
func (a *app) confirm(ctx context.Context, question string) error {
	fmt.Fprintf(a.err, "%s Type Y to go on: ", question)
	text, err := a.readLine(ctx)
	if err != nil {
		return err
	}
	if text = strings.TrimSpace(text); strings.EqualFold(text, "y") || strings.EqualFold(text, "yes") {
		return nil
	}
	return errs.New(errs.Internal, "not confirmed, nothing was changed")
}
