package fusefs

import (
	"strings"
	"testing"
	"time"
)

func TestSelfTest(t *testing.T) {
	f := newTestFlusher(t)
	start := time.Now()
	if err := SelfTest(t.Context(), t.TempDir(), f); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the self-test took %v", took)
	}
}

// A self-test that cannot fail shows nothing: without calling leases back behind the gate, cuts are wrong.
func TestSelfTestFindsMissingRecall(t *testing.T) {
	f := newTestFlusher(t)
	for range 20 {
		err := selfTest(t.Context(), t.TempDir(), f, func(m *Mount) { m.cutter.skipRecall.Store(true) })
		if err != nil && strings.Contains(err.Error(), "which came before it") {
			return
		}
	}
	t.Error("the self-test does not notice that leases are not called back")
}

// Nor are they where the kernel does not ask before the first write to a file that was looked at: a cut is wrong, or the
// questions are too few.
func TestSelfTestFindsMissingQuestion(t *testing.T) {
	f := newTestFlusher(t)
	for range 5 {
		err := selfTest(t.Context(), t.TempDir(), f, func(m *Mount) { m.vol.(*probe).deaf = true })
		if err == nil || !strings.Contains(err.Error(), "which came before it") && !strings.Contains(err.Error(), "does not ask for capabilities") {
			t.Errorf("the self-test does not notice that the kernel does not ask: %v", err)
		}
	}
}
