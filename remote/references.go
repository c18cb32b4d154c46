package remote

import "dm/object"

// References calls fn for each object that the object with the given plain bytes needs, in order. It fails with
// errs.Damaged if plain is not what its kind says.
func References(kind object.Kind, plain []byte, fn func(Want)) error {
	add := func(kind object.Kind, id object.ID) {
		if !id.IsZero() {
			fn(Want{kind, id})
		}
	}
	switch kind {
	case object.KindCommit:
		c, err := object.DecodeCommit(plain)
		if err != nil {
			return err
		}
		add(object.KindTree, c.Root.Tree)
		add(object.KindTree, c.Links)
		for _, p := range c.Parents {
			add(object.KindCommit, p)
		}
	case object.KindTree:
		t, err := object.DecodeTree(plain)
		if err != nil {
			return err
		}
		for i := range t.Entries {
			add(object.KindTree, t.Entries[i].Tree)
			add(kindOf(t.Entries[i].Content.Depth), t.Entries[i].Content.Root)
		}
		for _, br := range t.Branches {
			add(object.KindTree, br.ID)
		}
	case object.KindList:
		l, err := object.DecodeList(plain)
		if err != nil {
			return err
		}
		for _, s := range l.Spans {
			add(kindOf(l.Level-1), s.ID)
		}
	}
	return nil
}
