package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// format writes a figure with as many digits as mean something.
func format(m metric, v float64) string {
	switch m {
	case rate, handshakes, perCore, p50, p99, p999, foreign, cpuPerGB:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case rss, private, startup:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// machine is where and by what the figures were made.
type machine struct {
	cpu, kernel string
	memory      string
	when        time.Time
	load        [2]string // before and after
	versions    []config  // program, version
}

func (b *bench) machine() machine {
	m := machine{cpu: cpuModel(), kernel: firstLine("/proc/sys/kernel/osrelease"), when: time.Now(), memory: totalMemory()}
	m.load[0] = loadAverage()
	m.versions = []config{
		{"malha-proxy", version(b.tools.malha, "--version")}, {"Go", runtime.Version()}, {"nginx", version("nginx", "-v")}, {"HAProxy", version("haproxy", "-v")},
		{"nghttpx", version("nghttpx", "--version")}, {"h2load", version("h2load", "--version")}, {"wrk", version("wrk", "-v")},
	}
	if b.tools.envoy != "" {
		m.versions = append(m.versions, config{"Envoy", strings.ReplaceAll(version(b.tools.envoy, "--version"), b.tools.envoy, "envoy")})
	} else {
		m.versions = append(m.versions, config{"Envoy", "not installed: its rows are left out"})
	}
	return m
}

func loadAverage() string {
	f := strings.Fields(firstLine("/proc/loadavg"))
	if len(f) == 0 {
		return "?"
	}
	return f[0]
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(line)
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	m := regexp.MustCompile(`model name\s*:\s*(.+)`).FindSubmatch(b)
	if m == nil {
		return runtime.GOARCH
	}
	return string(m[1])
}

func totalMemory() string {
	kib, _ := strconv.Atoi(strings.Fields(firstLine("/proc/meminfo") + " 0 0")[1])
	return fmt.Sprintf("%.0f GB", float64(kib)/(1<<20))
}

const method = `Written by ` + "`make bench`" + `; nothing here is written by hand.

**How it is measured.** The proxy has one processor for itself, load and backend share the other. Subjects take turns in each round, in turned
order every other round; the ratio of record is the median of the ratios within the rounds. CPU time is the kernel's own sum for the process,
all its threads and those that have ended included (the process's CPU clock; cross-checked with wait4 at its end). Latencies come from a generator that
sends at a constant rate and counts from the moment when a request was due, so that nothing is omitted when a proxy stalls. "Others" is the share of the
proxy's processor that went to anything but the proxy. A round in which it was more than 20 % is measured again, a limited number of times; where
it is not small in spite of that, the machine was shared and the row is to be read with care.

Peers have their best honest configuration: one worker, upstream connections kept, no access log, the same TLS version, cipher and curve. Ours
runs with routing, a timeout, retries, its metrics and its limits, as a sidecar has them; the access log is off, as it is by default. Configurations are at the end.
`

// report writes the page.
func report(b *bench, m machine, results []*result, partial bool) string {
	var w strings.Builder
	w.WriteString("# Benchmarks\n\n" + method)
	if partial {
		w.WriteString("\n**Not all cases were run for this page.**\n")
	}
	fmt.Fprintf(&w, "\n**Machine.** %s, %d processors, %s, Linux %s; %s; %d rounds of %s s for each subject; load average %s before, %s after.\n",
		m.cpu, runtime.NumCPU(), m.memory, m.kernel, m.when.UTC().Format("2006-01-02 15:04 UTC"), b.rounds, seconds(b.seconds), m.load[0], m.load[1])

	reached, all := 0, 0
	var rows strings.Builder
	for _, r := range results {
		for _, g := range r.goals {
			all++
			verdict, sign := "**missed**", "≤"
			if g.reached() {
				verdict = "reached"
				reached++
			}
			if g.atLeast {
				sign = "≥"
			}
			fmt.Fprintf(&rows, "| %s | %s %s | %s | %s |\n", g.what, sign, g.number(g.limit), g.number(g.got), verdict)
		}
	}
	fmt.Fprintf(&w, "\n## Goals\n\n%d of %d are reached. Why the others are not, and what was tried: [design/0010](design/0010-data-path.md).\n\n| case | goal | measured | |\n|---|---|---|---|\n%s", reached, all, rows.String())

	for _, r := range results {
		r.write(&w)
	}

	w.WriteString("\n## Versions\n\n")
	for _, v := range m.versions {
		fmt.Fprintf(&w, "- %s: %s\n", v.name, v.text)
	}
	w.WriteString("\n## Configurations\n\nDIR is a temporary folder.\n")
	for _, r := range results {
		for _, c := range r.configs {
			if c.text != "" {
				fmt.Fprintf(&w, "\n<details><summary>%s: %s</summary>\n\n```\n%s\n```\n\n</details>\n", r.id, c.name, strings.TrimSpace(c.text))
			}
		}
	}
	return w.String()
}

func (g goal) number(v float64) string {
	digits := 2
	switch g.unit {
	case "":
		digits = 0
	case "MB", "KB", "ms":
		if v >= 10 {
			digits = 1
		}
	}
	return strings.TrimSpace(strconv.FormatFloat(v, 'f', digits, 64) + " " + g.unit)
}

// write adds the section of a case: the medians, the ratio of ours to each, and the raw numbers.
func (r *result) write(w *strings.Builder) {
	fmt.Fprintf(w, "\n## %s\n\n%s\n", r.title, r.method)
	if len(r.subjects) > 0 && len(r.columns) > 0 {
		main := r.columns[0]
		compare := len(r.subjects[0].procs) > 0 && len(r.subjects) > 1 // not rows that are states of one thing
		w.WriteString("\n| |")
		for _, c := range r.columns {
			fmt.Fprintf(w, " %s |", c)
		}
		fmt.Fprintf(w, " %s, min – max |", main)
		if compare {
			fmt.Fprintf(w, " %s: %s ÷ this |", main, r.subjects[0].name)
		}
		fmt.Fprintf(w, "\n|%s\n", strings.Repeat("---|", len(r.columns)+2+btoi(compare)))
		for _, s := range r.subjects {
			fmt.Fprintf(w, "| %s |", s.name)
			for _, c := range r.columns {
				if v := s.series(c); len(v) > 0 {
					fmt.Fprintf(w, " %s |", format(c, median(v)))
				} else {
					w.WriteString(" – |")
				}
			}
			v := s.series(main)
			fmt.Fprintf(w, " %s – %s |", format(main, slices.Min(v)), format(main, slices.Max(v)))
			if compare {
				fmt.Fprintf(w, " %.2f |", ratio(main, r.subjects[0], least, s))
			}
			w.WriteString("\n")
		}
	}
	for _, n := range r.notes {
		fmt.Fprintf(w, "\n%s\n", n)
	}
	if len(r.subjects) > 0 && len(r.columns) > 0 {
		w.WriteString("\n<details><summary>every round</summary>\n\n```\n")
		for _, s := range r.subjects {
			for i, m := range s.rounds {
				fmt.Fprintf(w, "%-20s %2d %s\n", s.name, i+1, m.String(r.columns))
			}
		}
		w.WriteString("```\n\n</details>\n")
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
