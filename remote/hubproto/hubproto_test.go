package hubproto

import (
	"bytes"
	"testing"

	"dm/object"
)

func FuzzLoad(f *testing.F) {
	r := LoadRequest{Wants: []Want{{object.KindTree, object.ID{1}}}, Haves: []object.ID{{2}, {3}}}
	f.Add(r.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeLoad(b)
		if err == nil && !bytes.Equal(r.Encode(), b) {
			t.Errorf("%x is read and not what would be written", b)
		}
	})
}

func TestLimits(t *testing.T) {
	r := LoadRequest{Wants: make([]Want, MaxIDs), Haves: make([]object.ID, MaxIDs)}
	for i := range r.Wants {
		r.Wants[i].Kind = object.KindChunk
	}
	if b := r.Encode(); len(b) != MaxLoad {
		t.Errorf("the longest request has %d bytes, MaxLoad is %d", len(b), MaxLoad)
	} else if _, err := DecodeLoad(b); err != nil {
		t.Error(err)
	}
	r.Wants = append(r.Wants, r.Wants[0])
	if _, err := DecodeLoad(r.Encode()); err == nil {
		t.Error("one object too many is taken")
	}
	if _, err := DecodeIDs(make([]byte, (MaxIDs+1)*object.IDSize)); err == nil {
		t.Error("one id too many is taken")
	}
}
