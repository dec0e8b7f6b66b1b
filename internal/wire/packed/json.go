package packed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/malha-mesh/malha/internal/plan"
	"github.com/malha-mesh/malha/internal/wire/codec"
)

// ReadJSON reads a plan in JSON. What is packed is decoded and packed one piece after the other, a route table one virtual host after
// the other, so that no more than one of them is ever there decoded: a heap that has once been large stays so in part.
//
// A field that is not known is an error, since it may be a condition; and what follows the plan is one. Of a plan and a route table, a
// field that is there twice is an error, too.
func ReadJSON(in io.Reader) (*Plan, error) {
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	out := &Plan{}
	err := object(d, map[string]func() error{
		"node":      into(d, &out.Node),
		"listeners": into(d, &out.Listeners),
		"routes":    elements(d, table(d, &out.Routes)),
		"clusters":  elements(d, piece(d, &out.Clusters)),
		"endpoints": elements(d, piece(d, &out.Endpoints)),
		"policies":  into(d, &out.Policies),
		"secrets":   into(d, &out.Secrets),
		"limits":    into(d, &out.Limits),
		"capture":   into(d, &out.Capture),
	})
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its end")
	}
	out.Routes, out.Clusters, out.Endpoints = slices.Clone(out.Routes), slices.Clone(out.Clusters), slices.Clone(out.Endpoints) // without room for more
	sortPieces(out.Routes)
	sortPieces(out.Clusters)
	sortPieces(out.Endpoints)
	return out, nil
}

// object reads a JSON object, or null, with what reads the value of each field that may be there, once.
func object(d *json.Decoder, fields map[string]func() error) error {
	if begun, err := begin(d, '{'); err != nil || !begun {
		return err
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name := t.(string) // a key, or Token has failed
		read := fields[name]
		if read == nil {
			return fmt.Errorf("field %q at byte %d is not known, or there twice", name, d.InputOffset())
		}
		delete(fields, name)
		if err := read(); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// elements returns what reads a JSON array, or null, with what reads an element.
func elements(d *json.Decoder, read func() error) func() error {
	return func() error {
		if begun, err := begin(d, '['); err != nil || !begun {
			return err
		}
		for d.More() {
			if err := read(); err != nil {
				return err
			}
		}
		_, err := d.Token()
		return err
	}
}

// begin reads the beginning of an array or an object; false for null.
func begin(d *json.Decoder, want json.Delim) (bool, error) {
	t, err := d.Token()
	if err != nil || t == nil {
		return false, err
	}
	if t != want {
		return false, fmt.Errorf("%v at byte %d instead of %v", t, d.InputOffset(), want)
	}
	return true, nil
}

// into returns what decodes a value.
func into(d *json.Decoder, v any) func() error { return func() error { return d.Decode(v) } }

// piece returns what decodes a T, packs it and appends it.
func piece[T any](d *json.Decoder, to *[]Piece[T]) func() error {
	return func() error {
		var v T
		if err := d.Decode(&v); err != nil {
			return err
		}
		p, err := Pack(&v)
		*to = append(*to, p)
		return err
	}
}

// table returns what reads a route table and appends it.
func table(d *json.Decoder, to *[]Routes) func() error {
	return func() error {
		var front, back plan.RouteTable // the fields with lower and higher numbers than hosts: one value has one encoding
		var hosts []byte
		err := object(d, map[string]func() error{
			"name": into(d, &front.Name),
			"hosts": elements(d, func() error {
				var h plan.VirtualHost
				if err := d.Decode(&h); err != nil {
					return err
				}
				p, err := Pack(&h)
				hosts = codec.AppendField(hosts, tableHosts, string(p))
				return err
			}),
			"otherwise": into(d, &back.Otherwise),
		})
		if err != nil {
			return err
		}
		b, err := codec.Marshal(&front)
		if err != nil {
			return err
		}
		b = append(b, hosts...)
		b, err = codec.Append(b, &back)
		*to = append(*to, Routes(b))
		return err
	}
}
