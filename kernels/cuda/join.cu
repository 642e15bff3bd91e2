/* Lets tokens join token sets; see join.h. One block per row and group, once per step. */
#include "join.h"
#include "pages.cuh"

extern "C" __global__ void __launch_bounds__(LIM_CUDA_JOIN_THREADS) lim_join(const __grid_constant__ lim_cuda_join join) {
    using namespace lessismore;
    const lim_cuda_call &call = join.call;
    const int32_t       *lengths = (const int32_t *)call.lengths, *kept = (const int32_t *)join.kept;
    const int            row = (int)blockIdx.x, threads = (int)blockDim.x;

    /* Every block looks at all rows: they go on together, or not at all. */
    bool alike = kept[0] == call.n_rows && kept[1] == call.budget - 1;
    for (int r = (int)threadIdx.x; alike && r < call.n_rows; r += threads) {
        alike = lengths[r] == kept[2 + r] + 1 || (lengths[r] <= 0 && kept[2 + r] <= 0);
    }
    if (!__syncthreads_and(alike)) {
        if (row == 0 && blockIdx.y == 0 && threadIdx.x == 0) *(uint32_t *)join.no_sets = 1;
        return;
    }
    const int n = lengths[row];
    if (n <= 0) return;
    const int     last = min(n, call.budget) - 1; /* a row that sees less has all of it as its set */
    const int64_t first = (int64_t)blockIdx.y * join.group_stride + row * call.set_stride;
    int32_t      *positions = (int32_t *)call.positions + first, *set = (int32_t *)call.set + first;
    for (int i = (call.table == 0 ? last : 0) + (int)threadIdx.x; i <= last; i += threads) {
        if (i == last) positions[i] = n - 1;
        set[i] = SlotOf(call, row, positions[i]);
    }
}
