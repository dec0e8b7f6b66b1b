// Goweb is the web application that introductions to Kubernetes deploy: it says hello and which pod it is.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "Hello, Kubernetes! I am %s\n", name)
	})
	log.Fatal(http.ListenAndServe(":80", nil))
}
