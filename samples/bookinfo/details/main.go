// Command details tells about a book.
package main

import (
	"flag"
	"net/http"
	"os"
	"strconv"

	"github.com/malha-mesh/malha/samples/bookinfo/internal/service"
)

func main() {
	os.Exit(service.Main("details", func(s *service.Service, _ *flag.FlagSet) func(*http.ServeMux) {
		return func(mux *http.ServeMux) {
			mux.HandleFunc("GET /details/{id}", func(w http.ResponseWriter, r *http.Request) {
				id, err := strconv.Atoi(r.PathValue("id"))
				if err != nil {
					s.JSON(w, http.StatusBadRequest, map[string]string{"error": "please provide a numeric product id"})
					return
				}
				s.JSON(w, http.StatusOK, service.Details{
					ID: id, Author: "William Shakespeare", Year: 1595, Type: "paperback", Pages: 200,
					Publisher: "PublisherA", Language: "English", ISBN10: "1234567890", ISBN13: "123-1234567890",
				})
			})
		}
	}))
}
