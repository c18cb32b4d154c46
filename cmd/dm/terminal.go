package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
)

// terminalOf returns the descriptor of a stream that is a terminal, -1 of any other, /dev/null for one.
func terminalOf(stream any) (fd int) {
	f, ok := stream.(*os.File)
	if !ok {
		return -1
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return -1
	}
	return int(f.Fd())
}

// hideInput makes a terminal not show what is typed, and returns what undoes it; nil where fd is no terminal.
func hideInput(fd int) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "look at the terminal: %w", err)
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return nil, errs.New(errs.Internal, "make the terminal hide what is typed: %w", err)
	}
	return func() { unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil //nolint:errcheck // the shell does it again
}

// terminalWidth returns how many columns a terminal has.
func terminalWidth(fd int) int {
	ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 {
		return 80
	}
	return int(ws.Col)
}

// readLine reads one line of input, without its end. What is read is bounded.
func (a *app) readLine(ctx context.Context) (string, error) {
	const longest = 4096
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReaderSize(a.in, longest).ReadSlice('\n')
		line <- strings.TrimRight(string(text), "\r\n")
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return "", errs.New(errs.Interrupted, "interrupted, nothing was changed")
	case text := <-line:
		return text, nil
	}
}
