package local

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExpositionGroupsFamilies(t *testing.T) {
	var e exposition
	e.add("default/a", []byte(`# HELP requests Requests.
# TYPE requests counter
requests{code="200"} 3
# TYPE took histogram
took_bucket{le="1"} 1
took_bucket{le="+Inf"} 2
took_sum 1.5
took_count 2
`))
	e.add("default/b", []byte(`# HELP requests Requests.
# TYPE requests counter
requests{code="200"} 4
requests{} 5 1700000000000
bare 1
`))
	e.add("default/c", nil)
	var got bytes.Buffer
	if err := e.write(&got); err != nil {
		t.Fatal(err)
	}
	want := `bare{proxy="default/b"} 1
# HELP requests Requests.
# TYPE requests counter
requests{proxy="default/a",code="200"} 3
requests{proxy="default/b",code="200"} 4
requests{proxy="default/b"} 5 1700000000000
# TYPE took histogram
took_bucket{proxy="default/a",le="1"} 1
took_bucket{proxy="default/a",le="+Inf"} 2
took_sum{proxy="default/a"} 1.5
took_count{proxy="default/a"} 2
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("merged page (-want +got):\n%s", diff)
	}
}
