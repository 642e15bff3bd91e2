# make build   the library: build/liblessismore.so
# make test    everything: kernels, Go, C ABI, Python, real hosts
# make demo    a prebuilt llama.cpp host, with and without the library, for a person to watch
# make bench   build/bench.json
# make clean

BUILD   := build
LIBRARY := $(BUILD)/liblessismore.so
JOBS    := $(shell nproc)
PYTHON  := python3

# Hosts and virtual environments live outside the tree and are made again when they are missing.
export LESSISMORE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lessismore/hosts
VENV := $(LESSISMORE_CACHE)/venv/bin/python

# The C++ archives are not among what Go's build cache looks at: their hash is, in a variable that
# nothing reads.
ARCHIVES = $(wildcard $(BUILD)/cmake/lib/*.a)
LDFLAGS  = -X main.archives=$(shell cat $(ARCHIVES) | sha256sum | cut -c1-16)
EXPORTS := $(CURDIR)/capi/exports.map

.PHONY: build deps kernels library test test-kernels test-neon test-go test-abi test-ggml test-python test-hosts hosts demo bench clean

build: library

deps:
	@scripts/deps.sh

kernels: deps
	@cmake -S . -B $(BUILD)/cmake -DCMAKE_BUILD_TYPE=Release >/dev/null
	@cmake --build $(BUILD)/cmake -j $(JOBS)

library: kernels
	go build -trimpath -buildmode=c-shared -tags netgo,osusergo \
	  -ldflags="-s -w $(LDFLAGS) '-extldflags=-Wl,--version-script=$(EXPORTS),--as-needed -static-libgcc'" \
	  -o $(LIBRARY) ./capi
	@rm -f $(BUILD)/liblessismore.h

test: test-kernels test-neon test-go test-abi test-ggml test-python test-hosts

test-kernels: kernels
	ctest --test-dir $(BUILD)/cmake --output-on-failure

# The same tests for aarch64, under emulation.
test-neon: deps
	tests/kernels/neon.sh

test-go: kernels
	go vet ./...
	go test -race -count=1 -ldflags='$(LDFLAGS)' ./...

test-abi: library
	tests/abi/run.sh

test-ggml: library
	tests/ggml/run.sh

test-python: library hosts
	$(PYTHON) tests/python/install.py
	$(LESSISMORE_CACHE)/python/bin/python -m pytest -q tests/python

test-hosts: library hosts
	$(VENV) -m pytest -q tests/hosts

hosts:
	$(PYTHON) tests/hosts/install.py

demo: library
	$(PYTHON) demo/demo.py

bench: library hosts
	$(PYTHON) tests/bench/run.py --out $(BUILD)/bench.json

clean:
	rm -rf $(BUILD)
