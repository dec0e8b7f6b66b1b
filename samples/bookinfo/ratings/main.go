// Command ratings keeps the stars that reviewers gave a book.
package main

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/malha-mesh/malha/samples/bookinfo/internal/service"
)

// most is how many products have ratings that were posted.
const most = 1000

// store holds the ratings that users posted, by product.
type store struct {
	mu      sync.Mutex
	ratings map[int]map[string]int
}

func (st *store) get(id int) map[string]int {
	st.mu.Lock()
	defer st.mu.Unlock()
	if r, ok := st.ratings[id]; ok {
		return r
	}
	return map[string]int{"Reviewer1": 5, "Reviewer2": 4}
}

func (st *store) put(id int, r map[string]int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if _, known := st.ratings[id]; !known && len(st.ratings) == most { // a sample, not a database: another one makes room
		for other := range st.ratings {
			delete(st.ratings, other)
			break
		}
	}
	st.ratings[id] = r
}

func main() {
	os.Exit(service.Main("ratings", func(s *service.Service, _ *flag.FlagSet) func(*http.ServeMux) {
		st := &store{ratings: map[int]map[string]int{}}
		return func(mux *http.ServeMux) {
			mux.HandleFunc("GET /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
				if id, ok := product(s, w, r); ok {
					s.JSON(w, http.StatusOK, service.Ratings{ID: id, Ratings: st.get(id)})
				}
			})
			mux.HandleFunc("POST /ratings/{id}", func(w http.ResponseWriter, r *http.Request) {
				id, ok := product(s, w, r)
				if !ok {
					return
				}
				var ratings map[string]int
				if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&ratings); err != nil {
					s.JSON(w, http.StatusBadRequest, map[string]string{"error": "please provide valid ratings JSON"})
					return
				}
				st.put(id, ratings)
				s.JSON(w, http.StatusOK, service.Ratings{ID: id, Ratings: ratings})
			})
		}
	}))
}

func product(s *service.Service, w http.ResponseWriter, r *http.Request) (int, bool) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		s.JSON(w, http.StatusBadRequest, map[string]string{"error": "please provide a numeric product id"})
	}
	return id, err == nil
}
