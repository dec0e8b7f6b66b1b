package ctl

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// The JUnit report as CI systems read it (https://github.com/testmoapp/junitxml).
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		File    string        `xml:"file,attr,omitempty"`
		Line    int           `xml:"line,attr,omitempty"`
		Failure *junitFailure `xml:"failure"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",cdata"`
	}
)

// junit writes the results for CI systems; a failure carries the way of the request.
func (r *testRun) junit(w io.Writer) error {
	out := junitSuites{Tests: len(r.results), Failures: r.failed, Time: fmt.Sprintf("%.6f", r.took.Seconds())}
	for i := range r.results {
		c := &r.results[i]
		name := c.Suite.String()
		if n := len(out.Suites); n == 0 || out.Suites[n-1].Name != name {
			out.Suites = append(out.Suites, junitSuite{Name: name})
		}
		suite := &out.Suites[len(out.Suites)-1]
		suite.Tests++
		one := junitCase{Name: c.Case + " (from " + c.From + ")", Class: name, File: shortPath(c.Origin.File), Line: c.Origin.Line}
		if !c.Passed() {
			suite.Failures++
			one.Failure = &junitFailure{Message: strings.Join(c.Failures, "; ")}
			if c.Walk != nil {
				v := newWalkView(&ui{})
				v.walk(c.Walk)
				one.Failure.Text = "\n" + strings.Join(v.lines, "\n") + "\n"
			}
		}
		suite.Cases = append(suite.Cases, one)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(out); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (r *testRun) writeJUnit(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("cannot write the report: %w", err)
	}
	if err := errors.Join(r.junit(f), f.Close()); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
