package store

import (
	"dm/object"
)

// Reference is an object that another one needs.
type Reference struct {
	Kind object.Kind
	ID   object.ID
	// Name is that of the entry of a tree through which it is reached; empty elsewhere.
	Name string
}

// References calls fn for each object that the object with the given plain bytes names, in order. Holes and empty
// directories name none. It fails with errs.Damaged if plain is not what its kind says.
func References(kind object.Kind, plain []byte, fn func(Reference)) error {
	add := func(kind object.Kind, id object.ID, name string) {
		if !id.IsZero() {
			fn(Reference{kind, id, name})
		}
	}
	switch kind {
	case object.KindCommit:
		c, err := object.DecodeCommit(plain)
		if err != nil {
			return err
		}
		add(object.KindTree, c.Root.Tree, "")
		add(object.KindTree, c.Links, "")
		for _, p := range c.Parents {
			add(object.KindCommit, p, "")
		}
	case object.KindTree:
		t, err := object.DecodeTree(plain)
		if err != nil {
			return err
		}
		for i := range t.Entries {
			e := &t.Entries[i]
			add(object.KindTree, e.Tree, e.Name)
			add(depthKind(e.Content.Depth), e.Content.Root, e.Name)
		}
		for _, br := range t.Branches {
			add(object.KindTree, br.ID, "")
		}
	case object.KindList:
		l, err := object.DecodeList(plain)
		if err != nil {
			return err
		}
		for _, s := range l.Spans {
			add(depthKind(l.Level-1), s.ID, "")
		}
	}
	return nil
}

// depthKind returns the kind of object at the given height of a file's content.
func depthKind(depth uint8) object.Kind {
	if depth == 0 {
		return object.KindChunk
	}
	return object.KindList
}
