package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

// generate is the entry of this program as a load generator, in a process of its own that is pinned to a processor. It
// prints a loadResult in JSON.
func generate(args []string) error {
	if len(args) == 0 {
		return errors.New("generator: want rate, tls, handshakes, bulk or source")
	}
	fs := flag.NewFlagSet("generator "+args[0], flag.ContinueOnError)
	port := fs.Int("port", 0, "port on 127.0.0.1")
	connections := fs.Int("connections", 64, "connections")
	perSecond := fs.Float64("rps", 1000, "requests per second, of all connections (rate)")
	duration := fs.Float64("seconds", 5, "how long")
	identity := fs.String("identity", "", "folder with the client's certificate; with it bulk speaks TLS")
	alpn := fs.String("alpn", "", "protocol to offer")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	d := time.Duration(*duration * float64(time.Second))
	var (
		l   loadResult
		err error
	)
	switch args[0] {
	case "rate":
		if err := quiet(); err != nil {
			return err
		}
		l, err = constantRate(*port, *connections, *perSecond, d)
	case "tls":
		l, err = tlsLoad(*port, *connections, *identity, *alpn, d)
	case "handshakes":
		l, err = handshakeLoad(*port, *connections, *identity, *alpn, d)
	case "bulk":
		l, err = bulkLoad(*port, *connections, *identity, *alpn, d)
	case "source":
		return bulkSource(*port)
	default:
		return fmt.Errorf("generator: no load %q", args[0])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(l)
}
