package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"dm/internal/errs"
)

// confirm asks the user and returns nil only for an answer that begins with Y or y.
func (a *app) confirm(ctx context.Context, question string) error {
	fmt.Fprintf(a.err, "%s Type Y to go on: ", question)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return errs.New(errs.Interrupted, "interrupted, nothing was changed")
	case text := <-answer:
		if strings.EqualFold(text, "y") || strings.EqualFold(text, "yes") {
			return nil
		}
	}
	return errs.New(errs.Internal, "not confirmed, nothing was changed")
}
