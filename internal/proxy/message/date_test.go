package message

import (
	"testing"
	"time"
)

func TestAppendDate(t *testing.T) {
	at := time.Date(1994, 11, 6, 9, 49, 37, 5, time.FixedZone("CET", 3600))
	if got := string(AppendDate(nil, at)); got != "Sun, 06 Nov 1994 08:49:37 GMT" { // the example of RFC 9110 section 5.6.7
		t.Error(got)
	}
}
