package object

// Reference is an object that another one needs.
type Reference struct {
	Kind Kind
	ID   ID
	// Name is that of the entry of a tree through which it is reached; empty elsewhere.
	Name string
}

// References calls fn for each object that the object with the given plain bytes names, in order. Holes and empty
// directories name none. It fails with errs.Damaged if plain is not what its kind says.
func References(kind Kind, plain []byte, fn func(Reference)) error {
	add := func(kind Kind, id ID, name string) {
		if !id.IsZero() {
			fn(Reference{kind, id, name})
		}
	}
	switch kind {
	case KindCommit:
		c, err := DecodeCommit(plain)
		if err != nil {
			return err
		}
		add(KindTree, c.Root.Tree, "")
		add(KindTree, c.Links, "")
		for _, p := range c.Parents {
			add(KindCommit, p, "")
		}
	case KindTree:
		t, err := DecodeTree(plain)
		if err != nil {
			return err
		}
		for i := range t.Entries {
			e := &t.Entries[i]
			add(KindTree, e.Tree, e.Name)
			add(depthKind(e.Content.Depth), e.Content.Root, e.Name)
		}
		for _, br := range t.Branches {
			add(KindTree, br.ID, "")
		}
	case KindList:
		l, err := DecodeList(plain)
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
func depthKind(depth uint8) Kind {
	if depth == 0 {
		return KindChunk
	}
	return KindList
}
