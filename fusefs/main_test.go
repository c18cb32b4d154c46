package fusefs

import (
	"fmt"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == FlusherArg {
		if err := RunFlusher(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "helper" {
		if err := helpers()[os.Args[2]](os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func newTestFlusher(t testing.TB) *Flusher {
	t.Helper()
	f := NewFlusher(slog.Default())
	t.Cleanup(f.Close)
	return f
}
