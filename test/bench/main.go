// Command bench holds malha-proxy against nginx, HAProxy, nghttpx and Envoy, doing the same work in turn in one run, and
// writes docs/benchmarks.md: what was measured, how, and which of our goals are reached. run.sh builds and installs what it needs.
//
// bench.go runs cases; cases_*.go say what is compared; peers.go, plans.go, certs.go and relay.go start the subjects; load.go,
// generator.go, openloop.go and tlsload.go make the load; measure.go asks the kernel; report.go writes the page.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "generator":
		err = generate(os.Args[2:])
	case len(os.Args) > 1 && os.Args[1] == "relay":
		err = relay(os.Args[2:])
	default:
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	t := &tools{}
	b := &bench{tools: t}
	flag.StringVar(&t.malha, "proxy", "bin/malha-proxy", "the malha-proxy to measure")
	flag.StringVar(&t.envoy, "envoy", "", "an envoy to compare with; empty: none")
	flag.StringVar(&t.streams, "nginx-stream", "", "nginx's module for TCP, or \"builtin\"; empty: none")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds; the median of the per-round ratios counts")
	flag.Float64Var(&b.seconds, "seconds", 5, "seconds of load for each subject in a round")
	only := flag.String("cases", "", "cases to run, with commas; empty: all of "+strings.Join(names(), ","))
	output := flag.String("output", "docs/benchmarks.md", "where the page goes")
	flag.Parse()
	if runtime.NumCPU() < 2 {
		return errors.New("two processors are needed: one for the proxy alone, one for load and backend")
	}
	var err error
	if t.self, err = os.Executable(); err != nil {
		return err
	}
	if t.malha, err = exec.LookPath(t.malha); err != nil {
		return fmt.Errorf("no malha-proxy to measure: %w", err)
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}

	m := b.machine()
	var results []*result
	var failed error
	for _, c := range chosen {
		r, err := b.runCase(c)
		if err != nil { // the other cases still count
			fmt.Fprintln(os.Stderr, "bench:", err)
			failed = errors.Join(failed, err)
			continue
		}
		results = append(results, r)
		for _, g := range r.goals {
			fmt.Printf("%-12s %-75s %10s (goal %s) reached: %t\n", c.id, g.what, g.number(g.got), g.number(g.limit), g.reached())
		}
	}
	m.load[1] = loadAverage()
	text := report(b, m, results, len(results) < len(cases))
	if err := os.WriteFile(*output, []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Println("\nwrote", *output)
	return failed
}

func names() []string {
	var out []string
	for _, c := range cases {
		out = append(out, c.id)
	}
	return out
}

func choose(list string) ([]benchCase, error) {
	if list == "" {
		return cases, nil
	}
	var out []benchCase
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(cases, func(c benchCase) bool { return c.id == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("there is no case %q: there are %s", name, strings.Join(names(), ", "))
		}
		out = append(out, cases[i])
	}
	return out, nil
}
