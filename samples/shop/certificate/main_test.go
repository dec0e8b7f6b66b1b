package main

import (
	"crypto/tls"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func TestSecret(t *testing.T) {
	text, err := secret(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		StringData map[string]string `yaml:"stringData"`
	}
	if err := yaml.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(s.StringData["tls.crt"]), []byte(s.StringData["tls.key"]))
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.VerifyHostname(host); err != nil {
		t.Error(err)
	}
}
