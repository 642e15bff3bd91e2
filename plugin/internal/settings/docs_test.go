package settings

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each variable has a row in docs/settings.md, and each row is a variable.
func TestDocumentHasEveryVariable(t *testing.T) {
	text, err := os.ReadFile("../../../docs/settings.md")
	require.NoError(t, err)
	var told, known []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(LESSISMORE[A-Z_]*)` \\|").FindAllSubmatch(text, -1) {
		told = append(told, string(row[1]))
	}
	for _, v := range variables {
		known = append(known, v.name)
	}
	require.ElementsMatch(t, known, told)
}
