package selection

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"lessismore/plugin/internal/settings"
)

// FuzzProfile has a model read any file as its profile: it is used, and then right, or left alone; nothing of it breaks the
// model, and a file that was not written for the model is not written over.
func FuzzProfile(f *testing.F) {
	config := settings.DefaultConfig()
	about := Identity{Layers: 6, Heads: 4, KVHeads: 2, KeyDim: 32, ValueDim: 32}
	path := filepath.Join(f.TempDir(), "profile.json")
	silent := func(settings.LogLevel, string) {}
	for _, text := range profiles(f, config, about) {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if aimed, err := ForQuality(text, 0.01); err == nil { // what is made of it is a profile, and the same again
			again, err := ForQuality(aimed, 0.01)
			if err != nil || !slices.Equal(aimed, again) {
				t.Fatalf("%v: %s", err, aimed)
			}
		}
		m, err := NewModel(config, about.Layers, about, Profiles{Path: path}.File(""), silent)
		if err != nil {
			t.Fatal(err)
		}
		chosen := m.Roles.Selections()
		for i, l := range chosen {
			if l < 0 || l >= about.Layers || i > 0 && l <= chosen[i-1] {
				t.Fatalf("selection layers %v", chosen)
			}
		}
		if p := m.Learned(); p != nil { // what was read can be written, and is the same then
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			again := &Profile{}
			if err := json.Unmarshal(text, again); err != nil {
				t.Fatal(err)
			}
			if err := again.fits(about, SettingsOf(&config, about.Layers)); err != nil || !slices.Equal(again.Choice, p.Choice) {
				t.Fatalf("%v: %s", err, text)
			}
		}
		for n := range 3 {
			m.Due(1 << (10 * n))
		}
	})
}

// profiles are a right one and some that are not.
func profiles(f testing.TB, config settings.Config, about Identity) []string {
	p := Profile{Format: profileFormat, Library: settings.Version, Model: about, Settings: SettingsOf(&config, about.Layers), Choice: []int{1, 3}}
	p.Fingerprint = Fingerprint(about, p.Settings)
	p.Measured.Steps, p.Measured.Tokens, p.Measured.Budget, p.Measured.Reach = 56, 5000, 512, 8
	p.Calibrated = &Calibration{Positions: 5, Tokens: 5000}
	for j := 1; j < about.Layers; j++ {
		row := make([]float32, j)
		for i := range row {
			row[i] = float32(i+j) / 100
		}
		p.Loss, p.Error = append(p.Loss, row), append(p.Error, row)
		p.Calibrated.Nats, p.Calibrated.Error = append(p.Calibrated.Nats, row), append(p.Calibrated.Error, row)
	}
	text := func() string {
		out, err := json.Marshal(&p)
		if err != nil {
			f.Fatal(err)
		}
		return string(out)
	}
	right := text()
	p.Calibrated = nil
	plain := text()
	p.Choice = []int{-1, 9}
	wrong := text()
	p.Choice, p.Loss = []int{1}, p.Loss[1:]
	return []string{right, plain, wrong, text(), "", "null", "{}", "[1]", `{"format": 1e99}`, right[:len(right)/2]}
}
