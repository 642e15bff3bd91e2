package selection

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"lessismore/plugin/internal/files"
	"lessismore/plugin/internal/settings"
)

const (
	profileFormat = 1
	ProfileCap    = 8 << 20 // bytes of a file that is read
)

// Identity is what tells a model from others, as far as the hook can see it.
type Identity struct {
	Layers   int     `json:"layers"` // that can take part
	First    int32   `json:"first_layer"`
	Last     int32   `json:"last_layer"`
	Heads    int32   `json:"heads"`
	KVHeads  int32   `json:"kv_heads"`
	KeyDim   int32   `json:"key_dim"`
	ValueDim int32   `json:"value_dim"`
	Scale    float32 `json:"scale"`
	Softcap  float32 `json:"softcap"`
	MaxBias  float32 `json:"max_bias"`
	Weights  string  `json:"weights"` // hash of names, shapes and samples of the weights
}

// UnknownWeights begins the identity of a model that no file can be kept of.
const UnknownWeights = "unknown"

// Conditions are what a measurement depends on besides the model.
type Conditions struct {
	Budget     int     `json:"budget"`
	Recency    float64 `json:"recency"`
	SinkTokens int     `json:"sink_tokens"`
	Policy     string  `json:"policy"`
	Selections int     `json:"selections"`
	Quality    bool    `json:"quality,omitempty"` // the choice is by a quality target, whichever
}

// SettingsOf are those of a configuration, for a model with that many layers.
func SettingsOf(c *settings.Config, layers int) Conditions {
	of := Conditions{c.Budget, c.Recency, c.SinkTokens, c.Policy.String(), c.SelectionsFor(layers), c.Quality > 0}
	if of.Quality {
		of.Selections = MostTried // as many as that takes
	}
	return of
}

// Fingerprint names the profile of a model under settings.
func Fingerprint(about Identity, with Conditions) string {
	text, _ := json.Marshal(struct {
		Identity
		Conditions
	}{about, with})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Profile is what was learned about a model: a small JSON file.
type Profile struct {
	Format      int        `json:"format"`
	Library     string     `json:"library"`
	Fingerprint string     `json:"fingerprint"`
	Model       Identity   `json:"model"`
	Settings    Conditions `json:"settings"`
	Choice      []int      `json:"choice"`                  // selection layers
	Attends     int        `json:"choice_budget,omitempty"` // tokens that the others attend to; 0: the settings' budget
	Worst       float64    `json:"worst_loss"`
	Measured    struct {
		Measure string `json:"measure"`
		Steps   int    `json:"steps"`
		Tokens  int    `json:"tokens"`
		Budget  int    `json:"probe_budget"`
		Reach   int    `json:"reach"` // in budgets
	} `json:"measured"`
	// Row j-1: what the worst head of layer j loses on the sets of layers 0 .. j-1, and its standard error.
	Loss  [][]float32 `json:"loss"`
	Error [][]float32 `json:"loss_error"`
	// The mean square of it, over steps and heads. Profiles had none at first.
	Square [][]float32 `json:"loss_square,omitempty"`
	// What was found by ablation; the choice is then by that, and the loss what the guard expects of it.
	Calibrated *Calibration `json:"calibrated,omitempty"`
	// With a quality target: what was tried for it, by which the choice is.
	Tried *Trials `json:"tried,omitempty"`
}

// Calibration is what one layer at a time does to the next token, attending to another layer's set.
type Calibration struct {
	Measure   string `json:"measure"`
	Positions int    `json:"positions"` // of the text that were tried
	Tokens    int    `json:"tokens"`    // visible at the last of them
	// Row j-1: divergence from the dense model, in nats, with layer j alone on the sets of layers 0 .. j-1, mean
	// over the positions, and its standard error; -1: not tried.
	Nats  [][]float32 `json:"nats"`
	Error [][]float32 `json:"nats_error"`
}

// attends is how many tokens a sparse layer attends to by the choice.
func (p *Profile) attends() int {
	if p.Attends > 0 {
		return p.Attends
	}
	return p.Settings.Budget
}

// profile states what is known of the model now.
func (m *Model) profile() *Profile {
	p := &Profile{Format: profileFormat, Library: settings.Version, Model: m.About, Settings: SettingsOf(&m.Config, m.Layers),
		Choice: m.Roles.Selections(), Worst: Round(m.measured.Worst(m.Roles.Selections()))}
	p.Fingerprint = Fingerprint(m.About, p.Settings)
	if m.Budget != m.Config.Budget {
		p.Attends = m.Budget
	}
	p.Measured.Measure = "share of its attention that the worst head loses against the layer's own set, mean over steps"
	p.Measured.Steps, p.Measured.Tokens = m.measured.steps, m.measured.tokens
	p.Measured.Budget, p.Measured.Reach, p.Calibrated = m.measured.budget, m.Reach, m.truth
	if m.Trials != nil && !m.trying {
		p.Tried = &Trials{Measure: trialMeasure, Target: m.Config.Quality, Least: leastMet, Candidates: slices.Clone(m.Trials.Candidates)}
	}
	for j := 1; j < m.Layers; j++ {
		row := func(of []float32) []float32 {
			out := slices.Clone(of[Pair(0, j):Pair(j, j)])
			for i, x := range out {
				out[i] = float32(Round(float64(x)))
			}
			return out
		}
		p.Loss, p.Error, p.Square = append(p.Loss, row(m.measured.Loss)), append(p.Error, row(m.measured.err)), append(p.Square, row(m.measured.Square))
	}
	return p
}

func Round(x float64) float64 { return math.Round(x*1e4) / 1e4 }

// measurement is the profile's, as it was before it became a file.
func (p *Profile) measurement() measurement {
	m := measurement{NewLosses(p.Model.Layers), p.Measured.Steps, p.Measured.Tokens, p.Measured.Budget}
	for j := range p.Loss {
		copy(m.Loss[Pair(0, j+1):], p.Loss[j])
		copy(m.err[Pair(0, j+1):], p.Error[j])
		if p.Square != nil {
			copy(m.Square[Pair(0, j+1):], p.Square[j])
			continue
		}
		for i, x := range p.Loss[j] {
			m.Square[Pair(i, j+1)] = x * x
		}
	}
	return m
}

// fits tells why a profile is not this model's; nil if it is.
func (p *Profile) fits(about Identity, with Conditions) error {
	if p.Format != profileFormat {
		return fmt.Errorf("its format is %d, not %d", p.Format, profileFormat)
	}
	for _, f := range []struct {
		name       string
		its, needs any
	}{
		{"layers", p.Model.Layers, about.Layers}, {"first_layer", p.Model.First, about.First},
		{"last_layer", p.Model.Last, about.Last}, {"heads", p.Model.Heads, about.Heads},
		{"kv_heads", p.Model.KVHeads, about.KVHeads}, {"key_dim", p.Model.KeyDim, about.KeyDim},
		{"value_dim", p.Model.ValueDim, about.ValueDim}, {"scale", p.Model.Scale, about.Scale},
		{"softcap", p.Model.Softcap, about.Softcap}, {"max_bias", p.Model.MaxBias, about.MaxBias},
		{"weights", p.Model.Weights, about.Weights}, {"budget", p.Settings.Budget, with.Budget},
		{"recency", p.Settings.Recency, with.Recency}, {"sink_tokens", p.Settings.SinkTokens, with.SinkTokens},
		{"policy", p.Settings.Policy, with.Policy}, {"selections", p.Settings.Selections, with.Selections},
		{"quality", p.Settings.Quality, with.Quality},
	} {
		if f.its != f.needs {
			return fmt.Errorf("it was made for %s %v, here it is %v", f.name, f.its, f.needs)
		}
	}
	return p.sound()
}

// sound tells what is wrong with a profile that may have been edited.
func (p *Profile) sound() error {
	n := p.Model.Layers
	if len(p.Choice) == 0 && p.Tried == nil || len(p.Choice) > settings.MaxSelections {
		return fmt.Errorf("choice has %d layers", len(p.Choice))
	}
	if !ascending(p.Choice, n) {
		return fmt.Errorf("choice %v is not ascending layers in 0 .. %d", p.Choice, n-1)
	}
	if p.Tried != nil {
		if err := p.Tried.sound(n); err != nil {
			return err
		}
	}
	if err := triangle("loss", n, p.Loss, p.Error, 0, 1, "a share"); err != nil {
		return err
	}
	if p.Square != nil {
		if err := triangle("loss_square", n, p.Square, p.Square, 0, 1, "a share's square"); err != nil {
			return err
		}
	}
	if p.Calibrated == nil {
		return nil
	}
	return triangle("calibrated", n, p.Calibrated.Nats, p.Calibrated.Error, -1, mostNats, "a divergence")
}

// mostNats bounds a divergence that is read; what is measured stays far below.
const mostNats = 1e6

// triangle tells what is wrong with a number per pair of layers, and its error.
func triangle(name string, layers int, of, errors [][]float32, leastError, most float32, what string) error {
	if len(of) != layers-1 || len(errors) != layers-1 {
		return fmt.Errorf("%s is not for %d layers", name, layers)
	}
	for j := range of {
		if len(of[j]) != j+1 || len(errors[j]) != j+1 {
			return fmt.Errorf("%s of layer %d is not for %d layers", name, j+1, j+1)
		}
		for i := range of[j] {
			if x, e := of[j][i], errors[j][i]; x < -1 || x > most || e < leastError || e > most {
				return fmt.Errorf("%s of layer %d is not %s", name, j+1, what)
			}
		}
	}
	return nil
}

// Profiles is where profiles are kept: at Path, or by fingerprint in Dir; nowhere with both empty.
type Profiles struct {
	Dir  string
	Path string
}

// ProfileFile is one model's place in it.
type ProfileFile struct {
	Path  string
	Given bool // by the user: not to be overwritten if it is another model's
	keep  bool // nothing may be written
}

func (p Profiles) File(name string) ProfileFile {
	switch {
	case p.Path != "":
		return ProfileFile{Path: p.Path, Given: true}
	case p.Dir != "":
		return ProfileFile{Path: filepath.Join(p.Dir, name+".json")}
	}
	return ProfileFile{}
}

// load reads the model's profile; nil: there is none that fits, and the log says so.
func (f *ProfileFile) load(m *Model) *Profile {
	if f.Path == "" {
		return nil
	}
	p, err := ReadProfile(f.Path, f.Given)
	if os.IsNotExist(err) {
		return nil
	}
	if err == nil {
		err = p.fits(m.About, SettingsOf(&m.Config, m.Layers))
	}
	if err != nil {
		f.keep = f.Given
		m.Log(settings.LogInfo, fmt.Sprintf("profile %s is not used: %v", f.Path, err))
		return nil
	}
	return p
}

// ReadProfile reads a regular file of bounded size; through a symbolic link only where the user named it.
func ReadProfile(path string, follow bool) (*Profile, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK // a pipe must not make the host wait
	if !follow {
		flags |= syscall.O_NOFOLLOW
	}
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !about.Mode().IsRegular() || about.Size() > ProfileCap {
		return nil, fmt.Errorf("it is no regular file of at most %d bytes", ProfileCap)
	}
	text, err := io.ReadAll(io.LimitReader(file, ProfileCap+1))
	if err != nil {
		return nil, err
	}
	return parse(text)
}

func parse(text []byte) (*Profile, error) {
	p := &Profile{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("it is no profile: %v", err)
	}
	return p, nil
}

// Save writes a profile, whole or not at all. A file that the user named may have become another model's since it was looked for.
func (f *ProfileFile) Save(p *Profile, log func(settings.LogLevel, string)) {
	if f.Path == "" || f.keep {
		return
	}
	if f.Given {
		if there, err := ReadProfile(f.Path, true); err == nil {
			if err := there.fits(p.Model, p.Settings); err != nil {
				log(settings.LogInfo, fmt.Sprintf("profile is not saved: %s is another one's: %v", f.Path, err))
				return
			}
		}
	}
	text, err := json.Marshal(p)
	if err == nil && !f.Given {
		err = os.MkdirAll(filepath.Dir(f.Path), 0o700)
	}
	if err == nil {
		err = files.Save(f.Path, append(text, '\n'), !f.Given)
	}
	if err != nil {
		log(settings.LogInfo, fmt.Sprintf("profile is not saved: %v", err))
		return
	}
	log(settings.LogDebug, "profile saved: "+f.Path)
}
