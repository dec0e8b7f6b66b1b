package message

import "time"

// AppendDate appends a Date as RFC 9110 section 5.6.7 has it: "Sun, 06 Nov 1994 08:49:37 GMT". Whoever makes a response must
// send one (section 6.6.1).
func AppendDate(b []byte, now time.Time) []byte {
	return now.UTC().AppendFormat(b, "Mon, 02 Jan 2006 15:04:05 GMT")
}
