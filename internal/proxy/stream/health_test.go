package stream

import (
	"slices"
	"testing"
)

// What an endpoint answers is foreign: whatever it is, it is read without harm, and only SERVING is healthy.
func FuzzHealthAnswer(f *testing.F) {
	for _, s := range [][]byte{{}, {8, 1}, {8, 2}, {8, 0x80}, {8, 1, 8, 3}, {0x12, 3, 1, 2, 3}, {0x10, 1}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if readHealth(msg) != nil {
			return
		}
		// Of several, the last one counts (Protocol Buffers "Encoding", last one wins): one more of ours decides.
		if err := readHealth(append(slices.Clone(msg), 8, 2)); err == nil || err.Error() != "it says NOT_SERVING" {
			t.Errorf("%v and NOT_SERVING is %v", msg, err)
		}
	})
}
