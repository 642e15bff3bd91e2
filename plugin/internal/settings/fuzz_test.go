package settings

import (
	"strings"
	"testing"
)

// FuzzEnvironment states settings as text, "NAME=value" by line: what is accepted is right, what is not is named.
func FuzzEnvironment(f *testing.F) {
	for _, seed := range []string{
		"LESSISMORE_BUDGET=2048\nLESSISMORE_LAYERS=2,12", "LESSISMORE_LAYERS=auto\nLESSISMORE_GUARD=off\nLESSISMORE_TRACE=on",
		"LESSISMORE_RECENCY=0.25\nLESSISMORE_POLICY=mass\nLESSISMORE_LOG=debug", "LESSISMORE=0\nLESSISMORE_CUDA=auto\nLESSISMORE_INTERVAL=4",
		"LESSISMORE_RECENCY=nan", "LESSISMORE_RECENCY=1e-400", "LESSISMORE_LAYERS=1,,2", "LESSISMORE_BUDGET=0x10", "LESSISMORE_GUARD=+16",
		"LESSISMORE_STATS=/tmp/%p.json\nLESSISMORE_PROFILE=off", "LESSISMORE_PROFILE=/", "LESSISMORE_SINK_TOKENS= 4", "LESSISMORE_BUDGET=99999999999999999999",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, text string, cuda bool) {
		values := map[string]string{}
		for _, line := range strings.Split(text, "\n") {
			name, value, _ := strings.Cut(line, "=")
			values[name] = value
		}
		lookup := func(name string) (string, bool) {
			v, ok := values[name]
			return v, ok
		}
		env, err := FromEnvironment(lookup, cuda)
		if bad := env.Validate(); bad != nil { // after an error, too: the log and the statistics use it
			t.Fatalf("%q gives %+v: %v", text, env, bad)
		}
		if err != nil {
			named := false
			for name, value := range values {
				named = named || value != "" && strings.HasPrefix(err.Error(), name+"=")
			}
			if !named {
				t.Fatalf("%q: %v names no variable", text, err)
			}
		}
		if env.Log < LogOff || env.Log > LogDebug || env.CUDA < CUDAOff || env.CUDA > CUDAOn {
			t.Fatalf("%q gives %+v", text, env)
		}
	})
}
