# make build   the library: build/liblessismore.so, with the CUDA engine where its compiler is to be had;
#              CUDA=0: without it, CUDA=1: fail where it cannot be built
# make test    everything: kernels, Go, C ABI, Python, real hosts
# make demo    a prebuilt llama.cpp host, with and without the library, for a person to watch
# make bench   build/bench.json
# make cuda    the CUDA kernels' machine code: build/cuda/kernels.fatbin
# make test-cuda   the CUDA engine without a GPU: resources, shared logic, Go side with a stand-in driver
# make gpu-test, make gpu-bench, make gpu-decode, make gpu-vllm   on a machine with a GPU, torch, transformers and gcc, after make library
#              cuda (there or elsewhere: no Go is needed)
# make clean

BUILD   := build
LIBRARY := $(BUILD)/liblessismore.so
JOBS    := $(shell nproc)
CUDA    := auto
PYTHON  := python3

# Hosts and virtual environments live outside the tree and are made again when they are missing.
export LESSISMORE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lessismore/hosts
VENV := $(LESSISMORE_CACHE)/venv/bin/python

# The C++ archives are not among what Go's build cache looks at: their hash is, in a variable that
# nothing reads.
ARCHIVES = $(wildcard $(BUILD)/cmake/lib/*.a)
LDFLAGS  = -X main.archives=$(shell cat $(ARCHIVES) | sha256sum | cut -c1-16)
EXPORTS := $(CURDIR)/capi/exports.map

.PHONY: build deps kernels library test test-kernels test-neon test-go test-abi test-ggml test-python test-hosts test-accuracy hosts demo bench clean

build: library

deps:
	@scripts/deps.sh

kernels: deps
	@cmake -S . -B $(BUILD)/cmake -DCMAKE_BUILD_TYPE=Release >/dev/null
	@cmake --build $(BUILD)/cmake -j $(JOBS)

library: kernels
	@toolkit=$$(scripts/cuda-toolchain.sh $(CUDA)) || exit 1; \
	tags=netgo,osusergo; \
	if [ -n "$$toolkit" ]; then \
	  $(MAKE) --no-print-directory $(CUDA_BUILD)/kernels.fatbin && $(EMBED) || exit 1; \
	  tags=$$tags,cuda; export CGO_CFLAGS="$(CUDA_CFLAGS) -I$$toolkit/include"; \
	fi; \
	set -x; \
	go build -trimpath -buildmode=c-shared -tags $$tags \
	  -ldflags="-s -w $(LDFLAGS) '-extldflags=-Wl,--version-script=$(EXPORTS),--as-needed -static-libgcc'" \
	  -o $(LIBRARY) ./capi
	@rm -f $(BUILD)/liblessismore.h

test: test-kernels test-neon test-go test-cuda test-abi test-ggml test-python test-hosts test-accuracy

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
	OMP_NUM_THREADS=1 $(LESSISMORE_CACHE)/python/bin/python -m pytest -q tests/python

test-hosts: library hosts
	$(VENV) -m pytest -q tests/hosts

test-accuracy: library hosts
	$(PYTHON) tests/python/install.py
	OMP_NUM_THREADS=1 $(LESSISMORE_CACHE)/python/bin/python -m pytest -q tests/accuracy

hosts: deps
	$(PYTHON) tests/hosts/install.py

demo: library
	$(PYTHON) demo/demo.py

bench: library hosts
	$(PYTHON) tests/bench/run.py --out $(BUILD)/bench.json

clean:
	rm -rf $(BUILD)

# ---- CUDA ----
# One image for all supported GPUs: machine code from Ampere to Blackwell, and PTX for what comes after.
CUDA_BUILD   := $(BUILD)/cuda
CUDA_TARGETS := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_80,code=compute_80 \
  -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_100,code=sm_100 -gencode arch=compute_120,code=sm_120
CUDA_CFLAGS  := -O2 -g -I$(CURDIR)/plugin/internal/cudrv/include
EMBEDDED     := plugin/internal/cuda/kernels.fatbin
EMBED        := { cmp -s $(CUDA_BUILD)/kernels.fatbin $(EMBEDDED) || cp $(CUDA_BUILD)/kernels.fatbin $(EMBEDDED); }

.PHONY: cuda test-cuda gpu-test gpu-bench gpu-decode gpu-vllm gpu-sanitize

cuda: $(CUDA_BUILD)/kernels.fatbin $(CUDA_BUILD)/read.fatbin

# The report is written by one compilation at a time, or its lines would mix.
$(CUDA_BUILD)/kernels.fatbin: $(wildcard kernels/cuda/*.cu kernels/cuda/*.cuh kernels/cuda/*.h)
	@mkdir -p $(CUDA_BUILD)
	$$(scripts/cuda-toolchain.sh)/bin/nvcc -std=c++17 -O3 --compress-mode=size -Xptxas -v $(CUDA_TARGETS) \
	  -fatbin -o $@ kernels/cuda/kernels.cu 2> $(CUDA_BUILD)/resources.log || { cat $(CUDA_BUILD)/resources.log; rm -f $@; exit 1; }

$(CUDA_BUILD)/read.fatbin: tests/gpu/read.cu
	@mkdir -p $(CUDA_BUILD)
	$$(scripts/cuda-toolchain.sh)/bin/nvcc -O3 $(CUDA_TARGETS) -fatbin -o $@ $<

# Nothing is tested where the library has no CUDA engine either.
test-cuda: library
	@toolkit=$$(scripts/cuda-toolchain.sh $(CUDA)) || exit 1; \
	[ -n "$$toolkit" ] || exit 0; \
	export CGO_CFLAGS="$(CUDA_CFLAGS) -I$$toolkit/include"; \
	set -ex; \
	$(PYTHON) tests/gpu/resources.py $(CUDA_BUILD)/resources.log; \
	ctest --test-dir $(BUILD)/cmake --output-on-failure -R cuda; \
	go vet -tags cuda ./...; \
	go test -count=1 -tags cuda -ldflags='$(LDFLAGS)' ./plugin ./plugin/internal/cuda

# On a GPU machine nothing is built but a C program: the library and the kernels are brought along.
gpu-test:
	$(PYTHON) tests/gpu/test_kernels.py
	$(PYTHON) tests/gpu/test_sieve.py
	$(PYTHON) tests/gpu/test_probe.py
	$(PYTHON) tests/gpu/test_library.py
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

# Plain allocations, so that the checker sees every array's end. Errors of driver calls are no finding: the library asks
# the driver about addresses that may be the host's. Torch's own kernels would take racecheck minutes.
SANITIZE := PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 --tool
gpu-sanitize:
	set -e; for test in kernels sieve probe library; do $(SANITIZE) memcheck --report-api-errors no $(PYTHON) tests/gpu/test_$$test.py --quick; done
	set -e; for test in kernels sieve probe; do $(SANITIZE) racecheck --kernel-name kns=lim_ $(PYTHON) tests/gpu/test_$$test.py --quick; done
