// Command reviews tells what readers think of a book. Version v1 has no stars, v2 has black ones and v3 red ones, which
// it asks the ratings service for.
package main

import (
	"flag"
	"net/http"
	"os"

	"github.com/malha-mesh/malha/samples/bookinfo/internal/service"
)

// colors are the versions' stars. A version that is not here asks for no ratings.
var colors = map[string]string{"v2": "black", "v3": "red"}

func main() {
	os.Exit(service.Main("reviews", func(s *service.Service, flags *flag.FlagSet) func(*http.ServeMux) {
		ratings := flags.String("ratings", "http://ratings:9080", "`URL` of the ratings service")
		return func(mux *http.ServeMux) {
			mux.HandleFunc("GET /reviews/{id}", func(w http.ResponseWriter, r *http.Request) {
				answer := service.Reviews{
					ID: r.PathValue("id"), Version: "reviews-" + s.Version,
					Reviews: []service.Review{
						{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
						{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
					},
				}
				if color, ok := colors[s.Version]; ok {
					var got service.Ratings
					call := s.Get(r, *ratings+"/ratings/"+answer.ID, &got)
					answer.Call = &call
					for i := range answer.Reviews {
						rev := &answer.Reviews[i]
						if call.OK() {
							rev.Rating = &service.Rating{Stars: got.Ratings[rev.Reviewer], Color: color}
						} else {
							rev.Rating = &service.Rating{Error: "Ratings service is currently unavailable", Color: color}
						}
					}
				}
				s.JSON(w, http.StatusOK, answer)
			})
		}
	}))
}
