package file

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of the watcher. The kernel's notice is the fast way; looking at the folder now and then is what holds when a
// notice cannot come (network file systems, a folder that was removed and made again, no watches left).
const (
	settle      = 50 * time.Millisecond  // of quiet after a notice: an editor writes in several steps
	settleMost  = 250 * time.Millisecond // after the first notice, quiet or not
	glanceEvery = 2 * time.Second
	glanceAlone = 500 * time.Millisecond // without the kernel's notices
)

// Options are those of New.
type Options struct {
	Dir string // a folder, or one file
	Log *slog.Logger
}

// Source reads a folder and follows its changes. Load and Run may not be called at the same time.
type Source struct {
	dir  string
	log  *slog.Logger
	last *snapshot // what the last Result was made of; nil before the first
	past Good      // what of it is good

	others atomic.Pointer[[]string] // of Follow
}

// New returns a Source. It touches nothing yet.
func New(o Options) *Source {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{dir: o.Dir, log: o.Log}
}

// Load reads the folder as it is now.
func (s *Source) Load() *Result {
	found, ds := scan(s.dir, false)
	s.last = found
	return s.result(found, ds)
}

// Run calls changed with a Result each time the content of the folder differs from the last Result, that of Load
// included, until ctx ends; without a Load before, it starts with one. It never returns another error than ctx's.
func (s *Source) Run(ctx context.Context, changed func(*Result)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("no notice of file changes; looking at the folder instead", "error", err, "every", glanceAlone)
	}
	w := watch{source: s, watcher: watcher, dirs: map[string]bool{}}
	defer w.close()
	return w.run(ctx, changed)
}

// watch is one Run.
type watch struct {
	source  *Source
	watcher *fsnotify.Watcher // nil when the kernel gives none
	dirs    map[string]bool   // watched
	blind   bool              // some folder is not watched
}

func (w *watch) close() {
	if w.watcher != nil {
		if err := w.watcher.Close(); err != nil {
			w.source.log.Warn("closing the file watcher", "error", err)
		}
	}
}

func (w *watch) run(ctx context.Context, changed func(*Result)) error {
	var events <-chan fsnotify.Event
	var failures <-chan error
	if w.watcher != nil {
		events, failures = w.watcher.Events, w.watcher.Errors
	}
	w.follow(glance(w.source.dir))
	w.reload(changed) // what changed since Load, before there were watches
	poll := time.NewTimer(w.every())
	defer poll.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	var first time.Time // of the notices not acted on yet; zero: none
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if e.Op == fsnotify.Chmod { // indexers touch files all the time; times and content are compared anyway
				continue
			}
			now := time.Now()
			if first.IsZero() {
				first = now
			}
			quiet.Reset(max(0, min(settle, first.Add(settleMost).Sub(now))))
		case err, ok := <-failures:
			if !ok {
				failures = nil
				continue
			}
			w.source.log.Warn("a notice of a file change was lost; reading the whole folder", "error", err) // the queue ran over
			quiet.Reset(settle)
		case <-quiet.C:
			first = time.Time{}
			w.reload(changed)
			poll.Reset(w.every()) // sooner, when the folder is gone and nothing would tell of its return
		case <-poll.C:
			now := glance(w.source.dir)
			now.attach(w.source.named(), false)
			if !now.looksSame(w.source.last) {
				w.reload(changed)
			} else {
				w.follow(now)
			}
			poll.Reset(w.every())
		}
	}
}

func (w *watch) every() time.Duration {
	if w.watcher == nil || w.blind || len(w.dirs) == 0 {
		return glanceAlone
	}
	return glanceEvery
}

// reload reads the folder and tells the caller when its content is another than before.
func (w *watch) reload(changed func(*Result)) {
	s := w.source
	found, ds := scan(s.dir, false)
	found.attach(s.named(), true)
	if w.follow(found) { // a folder may have filled up between being read and being watched
		found, ds = scan(s.dir, false)
		found.attach(s.named(), true)
	}
	if s.last != nil && found.same(s.last) {
		s.last = found // its times may be new
		return
	}
	s.last = found
	result := s.result(found, ds)
	w.follow(found) // the files that objects name may be new ones
	changed(result)
}

// follow watches the folders of a snapshot. A folder that went away and came back has lost its watch, so every one is
// added again; the kernel keeps one for each. It reports whether a folder was not watched before.
func (w *watch) follow(found *snapshot) (more bool) {
	if w.watcher == nil {
		return false
	}
	blind := false
	for _, dir := range found.dirs {
		if err := w.watcher.Add(dir); err != nil {
			if !w.blind {
				w.source.log.Warn("no notice of changes in a folder; looking at it instead", "dir", dir, "error", err, "every", glanceAlone)
			}
			blind = true
			continue
		}
		more = more || !w.dirs[dir]
		w.dirs[dir] = true
	}
	now := make(map[string]bool, len(found.dirs))
	for _, dir := range found.dirs {
		now[dir] = true
	}
	for dir := range w.dirs {
		if !now[dir] {
			// The folder is gone, and its watch most often went with it: an error would say only that.
			_ = w.watcher.Remove(dir)
			delete(w.dirs, dir)
		}
	}
	w.blind = blind
	return more
}
