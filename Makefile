# make build   the library: build/liblessismore.so, with the CUDA engine where its compiler is to be had;
#              CUDA=0: without it, CUDA=1: fail where it cannot be built
# make check   what takes minutes: formatters, linters, mypy, the tests of kernels, Go, C ABI and hook
# make test    make check and everything else: CUDA without a GPU, NEON, Python, real hosts, whole comparisons
# make format  lays the files out as make check wants them
# make demo    a prebuilt llama.cpp host, with and without the library, for a person to watch
# make soak    the KV index through a million random operations, a server through scripts of them and at full slots; takes two hours
# make fuzz    hosts' graphs, the C ABI's structures (both by libFuzzer; needs clang), settings and profiles, FUZZ=600 seconds each
# make sanitize  kernels, shim and C ABI under sanitizers: addresses and undefined behaviour, data races
# make coverage  which branches of the shim nothing takes: tests/ggml/branches.txt names those that nothing can; needs clang
# make bench   build/bench.json
# make cuda    the CUDA kernels' machine code: build/cuda/kernels.fatbin
# make test-cuda   the CUDA engine without a GPU: resources, shared logic, Go side with a stand-in driver
# make gpu-test, make gpu-bench, make gpu-decode, make gpu-vllm, make gpu-sglang   on a machine with a GPU, torch, transformers and gcc, after make library
#              cuda (there or elsewhere: no Go is needed)
# make wheels  build/dist: wheels for manylinux_2_28, x86_64 and aarch64, the source distribution, the wheel of lessismore demo
# make wheels-test   tries them on old and new systems of both architectures: docs/platforms.md; SHORT=1, a part of make test: on two
# make dist    build/dist: the library as a file, for people without Python
# make clean

BUILD   := build
LIBRARY := $(BUILD)/liblessismore.so
JOBS    := $(shell nproc)
CUDA    := auto
PYTHON  := python3

# Hosts and virtual environments live outside the tree and are made again when they are missing.
export LESSISMORE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lessismore/hosts
VENV := $(LESSISMORE_CACHE)/venv/bin/python

.PHONY: build deps kernels library check test lint format test-kernels test-neon test-go test-abi test-dist test-ggml test-python test-hosts test-accuracy test-platforms soak hosts demo bench clean

build: library

deps:
	@scripts/deps.sh

kernels: deps
	@cmake -S . -B $(BUILD)/cmake -DCMAKE_BUILD_TYPE=Release >/dev/null
	@cmake --build $(BUILD)/cmake -j $(JOBS)
	@scripts/archives.sh $(BUILD)/cmake/lib

library: deps
	@toolkit=$$(scripts/cuda-toolchain.sh $(CUDA)) || exit 1; \
	if [ -n "$$toolkit" ]; then $(MAKE) --no-print-directory $(CUDA_BUILD)/kernels.fatbin && $(EMBED) || exit 1; fi; \
	scripts/library.sh --build=$(BUILD) $${toolkit:+--cuda="$$toolkit/include"}

CHECK := lint test-kernels test-go test-abi test-ggml

check:
	+@MAKE="$(MAKE)" scripts/suites.sh library $(CHECK)

test:
	+@MAKE="$(MAKE)" scripts/suites.sh library $(CHECK) test-neon test-cuda test-dist test-python test-hosts test-accuracy test-platforms

lint: deps
	$(PYTHON) scripts/check.py

format: deps
	$(PYTHON) scripts/check.py --format

test-kernels: kernels
	ctest --test-dir $(BUILD)/cmake --output-on-failure

# The same tests for aarch64, under emulation.
test-neon: deps
	tests/kernels/neon.sh

test-go: kernels
	go test -race -count=1 ./...
	cd tests/gomodule && go test -count=1 ./...

test-abi: library
	tests/abi/run.sh
	scripts/sanitize.sh address short
	scripts/sanitize.sh thread short

test-dist: library
	tests/dist/run.sh

test-ggml: library
	tests/ggml/run.sh
	tests/ggml/faults.sh
	tests/ggml/sanitize.sh

test-python: library hosts
	$(PYTHON) tests/python/install.py
	OMP_NUM_THREADS=1 $(LESSISMORE_CACHE)/python/bin/python -m pytest -q tests/python

test-hosts: library hosts
	$(VENV) -m pytest -q tests/hosts

test-accuracy: library hosts
	$(PYTHON) tests/python/install.py
	OMP_NUM_THREADS=1 $(LESSISMORE_CACHE)/python/bin/python -m pytest -q tests/accuracy

soak: library hosts
	go test -count=1 ./plugin/internal/kvindex -run Model -args -steps=1000000
	$(VENV) -m pytest -q -s --long tests/hosts/test_soak.py
	$(VENV) -m pytest -q -s --long tests/hosts/test_releases.py tests/hosts/test_faults.py

# What one of them finds stays in build/fuzz, or in a package's testdata/fuzz: commit it there, and it is tried by `go test`.
FUZZ := 600
.PHONY: fuzz fuzz-graph fuzz-go fuzz-abi sanitize sanitize-graph sanitize-abi coverage
fuzz: fuzz-graph fuzz-go fuzz-abi

fuzz-graph: deps
	tests/ggml/sanitize.sh fuzz $(FUZZ)

fuzz-go: kernels
	go test ./plugin/internal/settings -run none -fuzz . -fuzztime $(FUZZ)s -fuzzminimizetime 5s
	go test ./plugin/internal/selection -run none -fuzz . -fuzztime $(FUZZ)s -fuzzminimizetime 5s

fuzz-abi: kernels
	tests/abi/fuzz.sh $(FUZZ)

# The shim's is whole in make test, too; the rest's is short there.
sanitize: sanitize-graph sanitize-abi

sanitize-graph: deps
	tests/ggml/sanitize.sh

sanitize-abi: deps
	scripts/sanitize.sh address
	scripts/sanitize.sh thread

coverage: library
	tests/ggml/coverage.sh

hosts: deps
	$(PYTHON) tests/hosts/install.py

demo: library
	$(PYTHON) demo/demo.py

bench: library hosts
	$(PYTHON) tests/hosts/install.py ik-llama
	$(PYTHON) tests/bench/run.py --out $(BUILD)/bench.json

clean:
	rm -rf $(BUILD)

# ---- CUDA ----
# One image for all supported GPUs: machine code from Ampere to Blackwell, and PTX for what comes after.
CUDA_BUILD   := $(BUILD)/cuda
CUDA_TARGETS := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_80,code=compute_80 \
  -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_100,code=sm_100 -gencode arch=compute_120,code=sm_120
CUDA_CFLAGS  := -O2 -g '-I$(CURDIR)/plugin/internal/cudrv/include'
EMBEDDED     := plugin/internal/cuda/kernels.fatbin
EMBED        := { cmp -s $(CUDA_BUILD)/kernels.fatbin $(EMBEDDED) || cp $(CUDA_BUILD)/kernels.fatbin $(EMBEDDED); }

.PHONY: cuda test-cuda gpu-test gpu-bench gpu-decode gpu-vllm gpu-sglang gpu-sanitize

cuda: $(CUDA_BUILD)/kernels.fatbin $(CUDA_BUILD)/read.fatbin

# The report is written by one compilation at a time, or its lines would mix.
$(CUDA_BUILD)/kernels.fatbin: $(wildcard kernels/cuda/*.cu kernels/cuda/*.cuh kernels/cuda/*.h)
	@mkdir -p $(CUDA_BUILD)
	scripts/fatbin.sh $@ -std=c++17 -O3 --compress-mode=size -Xptxas -v $(CUDA_TARGETS) \
	  2> $(CUDA_BUILD)/resources.log || { cat $(CUDA_BUILD)/resources.log; rm -f $@; exit 1; }

$(CUDA_BUILD)/read.fatbin: tests/gpu/read.cu
	@mkdir -p $(CUDA_BUILD)
	"$$(scripts/cuda-toolchain.sh)/bin/nvcc" -O3 $(CUDA_TARGETS) -fatbin -o $@ $<

# Nothing is tested where the library has no CUDA engine either.
test-cuda: library
	@toolkit=$$(scripts/cuda-toolchain.sh $(CUDA)) || exit 1; \
	[ -n "$$toolkit" ] || exit 0; \
	export CGO_CFLAGS="$(CUDA_CFLAGS) '-I$$toolkit/include'"; \
	set -ex; \
	$(PYTHON) tests/gpu/resources.py $(CUDA_BUILD)/resources.log; \
	ctest --test-dir $(BUILD)/cmake --output-on-failure -R cuda; \
	go vet -tags cuda ./...; \
	go test -count=1 -tags cuda ./plugin/...

# On a GPU machine nothing is built but a C program: the library and the kernels are brought along.
gpu-test:
	$(PYTHON) tests/gpu/test_kernels.py
	$(PYTHON) tests/gpu/test_logit_filter.py
	$(PYTHON) tests/gpu/test_probe.py
	$(PYTHON) tests/gpu/test_library.py
	$(PYTHON) tests/gpu/test_interval.py
	$(PYTHON) tests/gpu/test_auto.py
	$(PYTHON) tests/gpu/test_transformers.py
	$(PYTHON) tests/gpu/test_visible.py

gpu-bench:
	$(PYTHON) tests/gpu/bench.py --json $(CUDA_BUILD)/bench.json
	$(CC) -O2 -std=gnu11 -Iinclude -Ikernels/cuda -o $(CUDA_BUILD)/overhead tests/gpu/overhead.c -ldl
	$(CUDA_BUILD)/overhead $(LIBRARY) $(CUDA_BUILD)/kernels.fatbin

# A whole model of Qwen3-8B's shape in transformers.
gpu-decode:
	$(PYTHON) tests/gpu/decode.py --json $(CUDA_BUILD)/decode.json

gpu-vllm:
	PYTHON=$(PYTHON) tests/gpu/vllm/run.sh $(BUILD)/vllm

gpu-sglang:
	PYTHON=$(PYTHON) tests/gpu/sglang/run.sh $(BUILD)/sglang

# Plain allocations, so that the checker sees every array's end. Errors of driver calls are no finding: the library asks
# the driver about addresses that may be the host's. Torch's own kernels would take racecheck minutes.
SANITIZE := PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 --tool
gpu-sanitize:
	set -e; for test in kernels logit_filter probe library; do $(SANITIZE) memcheck --report-api-errors no $(PYTHON) tests/gpu/test_$$test.py --quick; done
	set -e; for test in kernels logit_filter probe; do $(SANITIZE) racecheck --kernel-name kns=lim_ $(PYTHON) tests/gpu/test_$$test.py --quick; done

# ---- Release ----
# For other systems than this one: one library per architecture, built by a compiler from PyPI for glibc 2.28.
ARCHS := x86_64 aarch64

.PHONY: release-libraries wheels wheels-test test-platforms python-tools dist

release-libraries: deps
	@toolkit=$$(scripts/cuda-toolchain.sh 1) && \
	$(MAKE) --no-print-directory $(CUDA_BUILD)/kernels.fatbin && $(EMBED) && \
	for arch in $(ARCHS); do scripts/library.sh --build=$(BUILD)/wheels/$$arch --arch=$$arch --cuda="$$toolkit/include" || exit 1; done

wheels: release-libraries
	scripts/wheels.sh $(ARCHS)

dist: release-libraries
	@for arch in $(ARCHS); do scripts/dist.sh $(BUILD)/wheels/$$arch/liblessismore.so $$arch $(BUILD)/dist || exit 1; done

wheels-test: wheels python-tools
	$(VENV) tests/platforms/run.py $(if $(SHORT),--short,--table docs/platforms.md)

# The short form, where the machine has what it takes; else why not.
test-platforms: python-tools
	@lacks=$$($(VENV) tests/platforms/run.py --missing) && \
	{ [ -n "$$lacks" ] || [ -n "$$(scripts/cuda-toolchain.sh $(CUDA))" ] || lacks="CUDA's compiler, for the engine in the wheels"; } && \
	if [ -n "$$lacks" ]; then echo "skipped: the wheels were not tried on other systems, which needs $$lacks"; \
	else $(MAKE) --no-print-directory wheels-test SHORT=1; fi

# The Python of the tests themselves, without the hosts.
python-tools:
	@$(PYTHON) tests/hosts/install.py venv
