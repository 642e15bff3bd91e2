package selection

import (
	"encoding/json"
	"errors"
	"fmt"

	"lessismore/plugin/internal/settings"
)

// ForQuality makes of a profile's text that of the same model for a quality target, for hosts whose steps others compute twice. It
// has the model's name under a target, the choices that are tried, the cheapest first, and of them the one that the trials take;
// none where they take none. What the text has of trials counts.
func ForQuality(text []byte, target float64) ([]byte, error) {
	if !(target > 0 && target <= settings.MaxQuality) {
		return nil, fmt.Errorf("quality = %v is not above 0, up to %d nats a token", target, settings.MaxQuality)
	}
	p, err := parse(text)
	if err == nil {
		err = p.whole()
	}
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	m := p.measurement()
	tried := newTrials(&m.Losses, &settings.Config{Budget: p.Settings.Budget, Quality: target}, m.tokens, p.Tried)
	p.Settings.Quality, p.Settings.Selections = true, MostTried
	p.Fingerprint, p.Library = Fingerprint(p.Model, p.Settings), settings.Version
	p.Choice, p.Attends, p.Calibrated, p.Tried = []int{}, 0, nil, tried
	if i := tried.choose(target); i >= 0 {
		p.Choice = tried.Candidates[i].Layers
	}
	p.Worst, p.Measured.Reach = Round(m.Worst(p.Choice)), 1<<ProbeRatios // of its own accord no host measures again
	return json.Marshal(p)
}

// whole tells what is wrong with a profile that goes on.
func (p *Profile) whole() error {
	if p.Format != profileFormat {
		return fmt.Errorf("its format is %d, not %d", p.Format, profileFormat)
	}
	if err := p.sound(); err != nil {
		return err
	}
	switch name := Fingerprint(p.Model, p.Settings); {
	case p.Fingerprint != name:
		return fmt.Errorf("its fingerprint is %q, that of its model and settings %s", p.Fingerprint, name)
	case p.Model.Layers < LeastMeasured:
		return fmt.Errorf("its model has %d layers, a choice takes %d", p.Model.Layers, LeastMeasured)
	case p.Settings.Budget < 1 || p.Settings.Budget > settings.MaxBudget:
		return fmt.Errorf("its budget is %d", p.Settings.Budget)
	case p.Measured.Steps == 0:
		return errors.New("nothing was measured of its model")
	}
	return nil
}
