package daemon

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"dm/dot"
	"dm/internal/durable"
	"dm/internal/errs"
)

// volumeRecord is a volume that Docker has created, as volumes.json keeps it. It is apart from the dot: removing a volume
// keeps the dot, and a dot that is renamed keeps its volumes.
type volumeRecord struct {
	Volume   string    `json:"volume"` // its name in Docker
	Dot      string    `json:"dot"`    // namespace/dot
	Branch   string    `json:"branch,omitempty"`
	Subdot   string    `json:"subdot,omitempty"`
	ReadOnly bool      `json:"readonly,omitempty"`
	Created  time.Time `json:"created"`
}

// name returns what the volume shows.
func (r volumeRecord) name() dot.Name {
	n, _ := dot.ParseDotName(r.Dot) // it was parsed before it was written
	n.Branch, n.Subdot = r.Branch, r.Subdot
	return n
}

// volumeList is the volumes of this server's plugin.
type volumeList struct {
	file string

	mu  sync.Mutex
	all map[string]volumeRecord // by name of the volume
}

// load reads volumes.json.
func (l *volumeList) load() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = map[string]volumeRecord{}
	text, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var records []volumeRecord
	if err == nil {
		err = json.Unmarshal(text, &records)
	}
	for _, r := range records {
		if _, perr := dot.ParseDotName(r.Dot); err == nil && perr != nil {
			err = perr
		}
		l.all[r.Volume] = r
	}
	if err != nil {
		return errs.WithHint(errs.New(errs.Damaged, "read the list of Docker's volumes %s: %w", l.file, err),
			"move it away; Docker then creates its volumes again, and they show the same dots")
	}
	return nil
}

// save writes volumes.json. The caller holds mu.
func (l *volumeList) save() error {
	text, err := json.MarshalIndent(l.sorted(), "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "encode the list of Docker's volumes: %w", err)
	}
	if err := durable.WriteFile(l.file, append(text, '\n'), 0o600); err != nil {
		return errs.New(errs.KindOf(err), "write the list of Docker's volumes: %w", err)
	}
	return nil
}

func (l *volumeList) sorted() []volumeRecord {
	list := []volumeRecord{}
	for _, name := range slices.Sorted(maps.Keys(l.all)) {
		list = append(list, l.all[name])
	}
	return list
}

func (l *volumeList) records() []volumeRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sorted()
}

// add remembers a volume.
func (l *volumeList) add(r volumeRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.all[r.Volume]; ok && (old.Dot != r.Dot || old.Branch != r.Branch || old.Subdot != r.Subdot || old.ReadOnly != r.ReadOnly) {
		return errs.WithHint(errs.New(errs.Conflict, "volume %s exists, with other options", r.Volume), "remove it first: docker volume rm %s", r.Volume)
	}
	l.all[r.Volume] = r
	return l.save()
}

func (l *volumeList) get(name string) (volumeRecord, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.all[name]
	if !ok {
		return r, errs.WithHint(errs.New(errs.NotFound, "no volume %s", name), "create it: docker volume create -d DRIVER %s", name)
	}
	return r, nil
}

// meaning returns what a volume shows.
func (l *volumeList) meaning(name string) (dot.Name, error) {
	r, err := l.get(name)
	if err != nil {
		return dot.Name{}, err
	}
	return r.name(), nil
}

// remove forgets a volume.
func (l *volumeList) remove(name string) (volumeRecord, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.all[name]
	if !ok {
		return r, nil
	}
	delete(l.all, name)
	return r, l.save()
}

// renameDot follows the rename of a dot, by key.
func (l *volumeList) renameDot(from, to string) error {
	return l.change(func(r *volumeRecord) (keep bool) {
		if r.Dot == from {
			r.Dot = to
		}
		return true
	})
}

// removeDot forgets the volumes of a dot that was deleted, by key.
func (l *volumeList) removeDot(dotKey string) error {
	return l.change(func(r *volumeRecord) (keep bool) { return r.Dot != dotKey })
}

func (l *volumeList) change(fn func(*volumeRecord) (keep bool)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := map[string]volumeRecord{}
	for name, r := range l.all {
		if fn(&r) {
			changed[name] = r
		}
	}
	if maps.Equal(changed, l.all) {
		return nil
	}
	l.all = changed
	return l.save()
}
