//go:build !cuda

package cuda

import "testing"

func TestSaysThatThereIsNone(t *testing.T) {
	if _, err := Open(0); err == nil || err.Error() != "built without CUDA" {
		t.Fatalf("Open: %v", err)
	}
}
