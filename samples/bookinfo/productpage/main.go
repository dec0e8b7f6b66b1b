// Command productpage shows a book: its details and reviews, asked of the other services, and how the page came about.
package main

import (
	_ "embed"
	"flag"
	"html/template"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/malha-mesh/malha/samples/bookinfo/internal/service"
)

//go:embed page.html
var page string

// product is a book of the catalogue.
type product struct {
	ID          int    `json:"id"`
	Title       string `json:"title"`
	Description string `json:"description"`
}

var products = []product{{
	ID: 0, Title: "The Comedy of Errors",
	Description: "Two sets of identical twins, separated at birth by a shipwreck, meet without knowing it in the city of Ephesus. " +
		"One of Shakespeare's early plays, his shortest and most farcical: mistaken identities, word play, and everything delivered to the wrong address.",
}}

// view is what the page shows. A part that could not be had is there with its Call only.
type view struct {
	Product     product
	Host        string
	User        string
	Canary      bool
	Details     *service.Details
	DetailsCall service.Call
	Reviews     *service.Reviews
	ReviewsCall service.Call
	Caller      string
}

// Version returns the version of reviews that answered: "v2".
func (v view) Version() string {
	if v.Reviews == nil {
		return ""
	}
	return strings.TrimPrefix(v.Reviews.Version, "reviews-")
}

func main() {
	os.Exit(service.Main("productpage", func(s *service.Service, flags *flag.FlagSet) func(*http.ServeMux) {
		details := flags.String("details", "http://details:9080", "`URL` of the details service")
		reviews := flags.String("reviews", "http://reviews:9080", "`URL` of the reviews service")
		return func(mux *http.ServeMux) {
			tmpl := template.Must(template.New("page").Funcs(template.FuncMap{
				"stars": func(n int) []bool { return []bool{n > 0, n > 1, n > 2, n > 3, n > 4} },
			}).Parse(page))
			mux.Handle("GET /{$}", http.RedirectHandler("/productpage", http.StatusFound))
			mux.HandleFunc("GET /productpage", func(w http.ResponseWriter, r *http.Request) {
				v := view{
					Product: products[0], Host: r.Host, Caller: service.Caller(r),
					User: r.Header.Get("end-user"), Canary: r.Header.Get("x-canary") == "true",
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					var d service.Details
					if v.DetailsCall = s.Get(r, *details+"/details/0", &d); v.DetailsCall.OK() {
						v.Details = &d
					}
				})
				wg.Go(func() {
					var rv service.Reviews
					if v.ReviewsCall = s.Get(r, *reviews+"/reviews/0", &rv); v.ReviewsCall.OK() {
						v.Reviews = &rv
					}
				})
				wg.Wait()
				w.Header().Set("content-type", "text/html; charset=utf-8")
				w.Header().Set("cache-control", "no-store")
				if err := tmpl.Execute(w, v); err != nil {
					s.Log.Warn("cannot write the page", "error", err)
				}
			})
			mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) {
				s.JSON(w, http.StatusOK, products)
			})
			mux.HandleFunc("GET /api/v1/products/{id}", func(w http.ResponseWriter, r *http.Request) {
				relay[service.Details](s, w, r, "details", *details+"/details/")
			})
			mux.HandleFunc("GET /api/v1/products/{id}/reviews", func(w http.ResponseWriter, r *http.Request) {
				relay[service.Reviews](s, w, r, "reviews", *reviews+"/reviews/")
			})
		}
	}))
}

// relay answers with what another service says of the product in the path.
func relay[T any](s *service.Service, w http.ResponseWriter, r *http.Request, name, url string) {
	if r.PathValue("id") != "0" {
		s.JSON(w, http.StatusNotFound, map[string]string{"error": "no such product"})
		return
	}
	var v T
	if call := s.Get(r, url+r.PathValue("id"), &v); !call.OK() {
		s.JSON(w, http.StatusBadGateway, map[string]string{"error": "cannot reach " + name + ": " + call.Problem})
		return
	}
	s.JSON(w, http.StatusOK, v)
}
