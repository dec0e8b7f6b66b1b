package ctl

import (
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/malha-mesh/malha/internal/app/local"
)

// progress shows events and program output one after the other. All of it waits in a queue: who reads it may pause, as a terminal does
// at Ctrl-S and less(1) at the end of a page, and neither the mesh nor a program may stand still for that.
type progress struct {
	s    *session
	tell func(local.Event)
	wake chan struct{} // one slot: something is there to be shown, or it is the end
	done chan struct{} // closed when all is shown

	mu     sync.Mutex
	queue  []shown
	size   int // bytes of it, about
	missed int // lines of programs that found no room since the last that did
	count  int // how much was shown, to see whether anybody reads
	over   bool
}

// shown is something to be shown.
type shown struct {
	show func()
	size int
}

const (
	maxShown = 4 << 20 // how many bytes may wait to be shown before lines of programs are left out
	lineCost = 150     // what a line takes beside its text
)

func newProgress(s *session) *progress {
	return &progress{s: s, tell: s.render, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// run shows what there is until end is called.
func (p *progress) run() {
	defer close(p.done)
	for range p.wake {
		for {
			p.mu.Lock()
			now, over, missed := p.queue, p.over, p.missed
			p.queue, p.size, p.missed = nil, 0, 0
			p.mu.Unlock()
			for _, what := range now {
				what.show()
				p.mu.Lock()
				p.count++
				p.mu.Unlock()
			}
			if missed > 0 {
				p.s.ui.say("%d lines of programs were not shown: they came faster than they were read; `malha logs WORKLOAD` has the last of them", missed)
			}
			if len(now) == 0 {
				if over {
					return
				}
				break
			}
		}
	}
}

// end waits until all is shown, or nobody reads any more.
func (p *progress) end() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.awake()
	for before := -1; ; {
		timer := time.NewTimer(time.Second)
		select {
		case <-p.done:
			timer.Stop()
			return
		case <-timer.C:
		}
		p.mu.Lock()
		now := p.count
		p.mu.Unlock()
		if now == before {
			return
		}
		before = now
	}
}

func (p *progress) awake() {
	select {
	case p.wake <- struct{}{}:
	default: // it is
	}
}

// add puts something behind all that is to be shown. There is always room for what the mesh itself says, which is little.
func (p *progress) add(what shown) {
	p.mu.Lock()
	p.queue, p.size = append(p.queue, what), p.size+what.size
	p.mu.Unlock()
	p.awake()
}

// event shows an event.
func (p *progress) event(e local.Event) { p.add(shown{show: func() { p.tell(e) }}) }

// Write shows a line of our own log.
func (p *progress) Write(b []byte) (int, error) {
	text := string(b)
	p.add(shown{func() { fmt.Fprint(p.s.ui.err, text) }, len(text)})
	return len(b), nil
}

// line shows one line of a program with its name in front.
func (p *progress) line(l local.Line) {
	p.mu.Lock()
	full := p.size > maxShown
	if full {
		p.missed++
	}
	p.mu.Unlock()
	if full {
		return
	}
	p.add(shown{func() {
		u := p.s.ui
		name := strings.TrimPrefix(l.Source, "default/")
		fmt.Fprintf(u.out, "%s %s\n", paint(u.outColor, sourceTone(l.Source), fmt.Sprintf("%-16s|", name)), l.Text)
	}, len(l.Source) + len(l.Text) + lineCost})
}

// sourceTone gives each source a colour of its own, the same in every run.
func sourceTone(source string) style {
	h := fnv.New32a()
	_, _ = io.WriteString(h, source)
	return []style{cyan, "35", "34", green, yellow, "96", "95", "94", "92", "93"}[h.Sum32()%10]
}
