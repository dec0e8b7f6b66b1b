// Package advisories is the proof that the data path survives what other proxies did not: each row of rows.txt is a
// class of published advisories, with the test that sends it or the reason why it does not apply to what exists.
//
// It has tests only. They are generators rather than fixed strings, as fixes get bypassed, and run against a real proxy
// (internal/proxy/live) over loopback sockets, between raw clients that may say anything (HTTP/1 bytes, HTTP/2 frames)
// and an origin that reads its requests with a strict parser of its own and keeps them. TestRows holds the rows to the
// tree: it fails on a row without a test, on one whose test is gone, and when docs/advisories.md is not what the rows
// say (go test ./internal/advisories -run TestRows -update writes it).
//
// Tests of one codec stay with the codec; the rows name them. What a test may not depend on, processor time and the
// latency of a client that behaves, is measured by TestSoak alone, on a quiet machine (make soak).
package advisories
