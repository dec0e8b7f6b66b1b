package ctl

import (
	"net/url"
	"path/filepath"
	"slices"

	"github.com/malha-mesh/malha/internal/model"
)

// The parts of a SARIF 2.1.0 log that we write (OASIS, "Static Analysis Results Interchange Format Version 2.1.0").
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string      `json:"id"`
		HelpURI string      `json:"helpUri"`
		Default sarifConfig `json:"defaultConfiguration"`
	}
	sarifConfig struct {
		Level string `json:"level"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID       string             `json:"ruleId"`
		RuleIndex    int                `json:"ruleIndex"`
		Level        string             `json:"level"`
		Message      sarifText          `json:"message"`
		Locations    []sarifLocation    `json:"locations,omitempty"`
		Suppressions []sarifSuppression `json:"suppressions,omitempty"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
	sarifLogical struct {
		Name string `json:"fullyQualifiedName"`
		Kind string `json:"kind"`
	}
	sarifSuppression struct {
		Kind string `json:"kind"`
	}
)

// sarif returns findings as code scanners exchange them.
func sarif(all []finding, version string) *sarifLog {
	driver := sarifDriver{Name: "malha analyze", Version: version, InformationURI: "https://github.com/malha-mesh/malha", Rules: []sarifRule{}}
	run := sarifRun{ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	for i := range all {
		f := &all[i]
		rule := slices.IndexFunc(driver.Rules, func(r sarifRule) bool { return r.ID == f.Code })
		if rule < 0 {
			rule = len(driver.Rules)
			driver.Rules = append(driver.Rules, sarifRule{ID: f.Code, HelpURI: f.Page, Default: sarifConfig{sarifLevel(f.Severity)}})
		}
		text := f.Message
		if f.Hint != "" {
			text += " (fix: " + f.Hint + ")"
		}
		r := sarifResult{RuleID: f.Code, RuleIndex: rule, Level: sarifLevel(f.Severity), Message: sarifText{text}}
		var at sarifLocation
		if f.Origin.File != "" {
			at.Physical = &sarifPhysical{Artifact: sarifArtifact{uriOf(f.Origin.File)}}
			if f.Origin.Line > 0 {
				at.Physical.Region = &sarifRegion{f.Origin.Line}
			}
		}
		if f.Origin.Kind != "" {
			at.Logical = []sarifLogical{{Name: f.Origin.Kind + "/" + f.Origin.Namespace + "/" + f.Origin.Name, Kind: "resource"}}
		}
		if at.Physical != nil || at.Logical != nil {
			r.Locations = []sarifLocation{at}
		}
		switch f.Suppressed {
		case "annotation":
			r.Suppressions = []sarifSuppression{{"inSource"}}
		case "flag":
			r.Suppressions = []sarifSuppression{{"external"}}
		}
		run.Results = append(run.Results, r)
	}
	run.Tool = sarifTool{driver}
	return &sarifLog{Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run}}
}

func sarifLevel(s model.Severity) string {
	if s == model.Info {
		return "note"
	}
	return string(s)
}

// uriOf returns a path as a URI reference (RFC 3986); a relative one stays relative to where the tool runs.
func uriOf(path string) string {
	u := url.URL{Path: filepath.ToSlash(path)}
	if filepath.IsAbs(path) {
		u.Scheme = "file"
	}
	return u.String()
}
