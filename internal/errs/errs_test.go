package errs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestEveryKindIsInEveryTable(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if k.String() == "" || seen[k.String()] {
			t.Errorf("kind %d has no name of its own: %q", k, k)
		}
		seen[k.String()] = true
		if ParseKind(k.String()) != k {
			t.Errorf("ParseKind(%q) = %v", k, ParseKind(k.String()))
		}
		if k.ExitCode() == 0 {
			t.Errorf("%v: a failure must not exit with 0", k)
		}
		if s := k.HTTPStatus(); s < 400 || s > 599 {
			t.Errorf("%v: HTTP status %d is no failure", k, s)
		}
	}
}

// The exit codes are a contract with users' scripts.
func TestExitCodes(t *testing.T) {
	want := map[Kind]int{
		Internal: 1, Usage: 2, NotFound: 3, Conflict: 4, NotAllowed: 5, Unreachable: 6, Damaged: 7, NoSpace: 1,
		Interrupted: 130,
	}
	for _, k := range Kinds() {
		if k.ExitCode() != want[k] {
			t.Errorf("%v exits with %d, want %d", k, k.ExitCode(), want[k])
		}
	}
}

func TestKindShinesThrough(t *testing.T) {
	cause := errors.New("cause")
	base := New(NotFound, "dot %s: %w", "x", cause)
	err := fmt.Errorf("read dot: %w", WithHint(base, "run %s", "dm list"))
	if KindOf(err) != NotFound {
		t.Errorf("kind %v", KindOf(err))
	}
	if got := HintOf(err); got != "run dm list" {
		t.Errorf("hint %q", got)
	}
	if got := err.Error(); got != "read dot: dot x: cause" {
		t.Errorf("text %q", got)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{syscall.ENOSPC, NoSpace},
		{fs.ErrNotExist, NotFound},
		{context.Canceled, Interrupted},
		{syscall.ECONNREFUSED, Unreachable},
		{errors.New("?"), Internal},
		{nil, Internal},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
