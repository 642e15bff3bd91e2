// Runs fuzz_graph.cc without libFuzzer, under any compiler's sanitizers.
//
//     fuzz_seeds [RUNS [THREADS [SEED]]] [FILE ...]
//
// Each file's bytes, then RUNS inputs of chance on each thread. The seed is said; a run that fails is repeated by it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include <vector>

#include "shim.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv) {
    const long     runs = argc > 1 ? atol(argv[1]) : 1000, threads = argc > 2 ? atol(argv[2]) : 1;
    const unsigned seed = argc > 3 && atol(argv[3]) != 0 ? static_cast<unsigned>(atol(argv[3])) : std::random_device()();
    for (int i = 4; i < argc; i++) {
        std::ifstream           file(argv[i], std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        if (bytes.empty()) {
            fprintf(stderr, "fuzz_seeds: %s cannot be read\n", argv[i]);
            return 2;
        }
        LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
    }
    printf("fuzz_seeds: %d files, then %ld runs on each of %ld threads, seed %u\n", argc > 4 ? argc - 4 : 0, runs, threads, seed);
    fflush(stdout);
    const uint8_t none[1] = {0};
    LLVMFuzzerTestOneInput(none, 0); // what is made once is made
    std::vector<std::thread> all;
    for (long t = 0; t < threads; t++) {
        all.emplace_back([=] {
            std::mt19937         chance(seed + static_cast<unsigned>(t));
            std::vector<uint8_t> bytes;
            for (long i = 0; i < runs; i++) {
                bytes.resize(50 + chance() % 700);
                for (uint8_t &b : bytes) b = static_cast<uint8_t>(chance());
                LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
            }
        });
    }
    for (std::thread &t : all) t.join();
    if (shim_sessions() != 0) {
        fprintf(stderr, "fuzz_seeds: %d sessions are left open\n", shim_sessions());
        return 1;
    }
    return 0;
}
