// Package errs holds dm's one list of error kinds.
//
// Every edge of dm (errno at a mount, HTTP status at the API and the hub, exit code of the command line) maps the same
// list with one table, so an error keeps its meaning on its whole way to the user. Code never looks at an error's text:
// it asks KindOf. An error with no kind is Internal. Wrap with fmt.Errorf and %w; the kind shines through.
package errs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Kind says what sort of failure an error is. The zero value is Internal.
type Kind uint8

// The kinds. Their order is part of the API's wire format: add at the end.
const (
	Internal    Kind = iota // something dm did not foresee
	Usage                   // the user asked for something that has no meaning
	NotFound                // a dot, branch, revision, path, object that is not there
	Conflict                // diverged, dirty, exists already, busy
	NotAllowed              // the asker may not
	Unreachable             // a server or remote does not answer
	Damaged                 // stored data is not what was stored
	NoSpace                 // the disk is full, or under the low-space threshold
	Interrupted             // the user or a shutdown cancelled it
	kinds
)

// Kinds returns all kinds, for tests that walk a whole table.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

var names = [kinds]string{
	"internal", "usage", "not-found", "conflict", "not-allowed", "unreachable", "damaged", "no-space", "interrupted",
}

// String returns the kind's name, as the API and the log write it.
func (k Kind) String() string {
	if k >= kinds {
		return "unknown"
	}
	return names[k]
}

// ParseKind is the inverse of String; an unknown name is Internal.
func ParseKind(s string) Kind {
	for i, n := range names {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

var exitCodes = [kinds]int{1, 2, 3, 4, 5, 6, 7, 1, 130}

// ExitCode returns the exit status of a command that failed with this kind of error.
func (k Kind) ExitCode() int {
	if k >= kinds {
		return 1
	}
	return exitCodes[k]
}

var httpStatus = [kinds]int{500, 400, 404, 409, 403, 502, 422, 507, 499}

// HTTPStatus returns the HTTP status code that carries this kind of error.
func (k Kind) HTTPStatus() int {
	if k >= kinds {
		return 500
	}
	return httpStatus[k]
}

// Error is an error with a kind and, where there is something to do about it, a hint for the user.
type Error struct {
	Kind Kind
	Msg  string // what and why, one line
	Hint string // what to do; may be empty
	Err  error  // the cause, whose text Msg includes; may be nil
}

func (e *Error) Error() string {
	if e.Msg == "" && e.Err != nil {
		return e.Err.Error()
	}
	return e.Msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of the given kind; format and args are those of fmt.Errorf, %w included.
func New(k Kind, format string, args ...any) error {
	cause := fmt.Errorf(format, args...)
	return &Error{Kind: k, Msg: cause.Error(), Err: cause}
}

// WithHint adds what the user can do about err, keeping its kind and text.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Hint: fmt.Sprintf(format, args...), Err: err}
}

// KindOf returns the kind of the first error in err's chain that has one. Errors of the standard library that have a
// plain meaning (fs.ErrNotExist, ENOSPC, context.Canceled ...) are mapped; everything else is Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e.Kind != Internal {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return NoSpace
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return Conflict
	case errors.Is(err, fs.ErrPermission):
		return NotAllowed
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, context.DeadlineExceeded):
		return Unreachable
	}
	return Internal
}

// HintOf returns the first hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
