package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"dm/api"
)

// The line of a transfer is a format that scripts know.
func TestBar(t *testing.T) {
	now := time.Unix(1000, 0)
	var out bytes.Buffer
	b := newBar(&out)
	b.now = func() time.Time { return now }
	at := func(done int64, after time.Duration) string {
		out.Reset()
		now = now.Add(after)
		b.show(api.Progress{Stage: "pushing", Done: done, Total: 811840000, Bytes: true, Part: 1, Parts: 1})
		return out.String()
	}
	if got := at(0, 0); got != "" {
		t.Errorf("where nobody watches, the first line comes after a while, not %q", got)
	}
	if got := at(81184000, progressPlain-time.Millisecond); got != "" {
		t.Errorf("before its time: %q", got)
	}
	want := "pushing 405.92 MB / 811.84 MB [==--] 50.00% 77.42 MiB/s 5s (1/1)\n"
	if got := at(405920000, time.Millisecond); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	at(811840000, 5*time.Second)
	out.Reset()
	b.finish()
	if got, want := out.String(), "finished 811.84 MB / 811.84 MB [====] 100.00% 77.42 MiB/s (1/1)\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	out.Reset()
	b.finish()
	if out.Len() > 0 {
		t.Errorf("what has not traveled is not finished: %q", &out)
	}
}

func TestSummary(t *testing.T) {
	for _, c := range []struct {
		r    api.TransferResult
		want string
	}{
		{api.TransferResult{}, "sent nothing: all of it was there"},
		{
			api.TransferResult{Bytes: 4210000, Size: 811840000, Objects: 1204, Total: 15310, Commits: 1},
			"sent 4.21 MB of 811.84 MB (1,204 of 15,310 objects), 0.5% of the dot",
		},
		{
			api.TransferResult{Bytes: 990, Size: 5640000, Objects: 97, Total: 85, Commits: 3},
			"sent 0.99 kB of 5.64 MB (97 objects of 3 commits), less than 0.1% of the dot",
		},
		{api.TransferResult{Bytes: 300, Objects: 2, Total: 2}, "sent 0.30 kB of 0.00 kB (2 of 2 objects)"},
		{api.TransferResult{Bytes: 300, Objects: 2, Lazy: true}, "sent 0.30 kB in 2 objects; the rest comes when it is read"},
	} {
		if got := summary("sent", c.r); got != c.want {
			t.Errorf("%+v: %q, want %q", c.r, got, c.want)
		}
	}
}

// Every outcome of a ref has words of its own.
func TestTravelIsTold(t *testing.T) {
	seen := map[string]bool{}
	for _, did := range []string{"", api.DidNothing, api.DidAhead, api.DidMake, api.DidMove, api.DidStash, api.DidClash} {
		var out bytes.Buffer
		if err := tellTravel(&out, "Pushing", api.Travel{Did: did, Ref: "branch b", From: "a", To: "c"}); err != nil {
			t.Fatal(err)
		}
		if text := out.String(); strings.Count(text, "\n") != 1 || seen[text] {
			t.Errorf("%q says %q", did, text)
		} else {
			seen[text] = true
		}
	}
}
