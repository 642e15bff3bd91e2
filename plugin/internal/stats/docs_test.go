package stats

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each number and each reason has a row in docs/statistics.md.
func TestDocumentHasEveryNumberAndReason(t *testing.T) {
	text, err := os.ReadFile("../../../docs/statistics.md")
	require.NoError(t, err)
	told := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllSubmatch(text, -1) {
		for _, name := range strings.Split(string(row[1]), ",") {
			told[strings.Trim(name, " `")] = true
		}
	}
	for i := range reflect.TypeFor[Stats]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[Stats]().Field(i).Tag.Get("json"), ",")
		require.True(t, name == "-" || told[name], "%q", name)
	}
	for r := Offloaded + 1; r < Reasons; r++ {
		require.True(t, told[r.String()], "%v", r)
	}
}
