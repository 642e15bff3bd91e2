/* Which tokens join which sets (join.cu), by one thread for each block: the kernel's own source, compiled for the host. */
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace {
struct Index {
    unsigned x, y, z;
} blockIdx, threadIdx = {0, 0, 0}, blockDim = {1, 1, 1};

template <class T>
T    __ldg(const T *from) { return *from; }
bool __syncthreads_and(bool all) { return all; }
}  // namespace

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__
using std::min;
#include "join.cu"

namespace {

constexpr int kCapacity = 64;

struct Sets {
    int              rows, groups, size, stride; /* size: once the new token is in */
    std::vector<int> lengths, kept, table, positions, slots;
    int              shift = 0;

    int At(int group, int row) const { return (group * rows + row) * stride; }
};

TEST(Join, AgainstADirectModel) {
    std::random_device seed;
    const unsigned     number = seed();
    SCOPED_TRACE(testing::Message() << "seed " << number);
    std::mt19937 rng(number);
    const auto   pick = [&rng](int least, int most) { return std::uniform_int_distribution<int>(least, most)(rng); };
    int          joined = 0, dense = 0;
    for (int i = 0; i < 5000; i++) {
        Sets s = {pick(1, 5), pick(1, 2), pick(3, 22) + pick(1, 4), 0, {}, {}, {}, {}, {}, pick(0, 2)};
        s.stride = s.size + pick(0, 3);
        const bool paged = pick(0, 1) != 0;
        bool       alike = true;
        s.kept = {s.rows, s.size - 1};
        if (pick(0, 5) == 0) s.kept[1] += pick(0, 1) * 2 - 1, alike = false; /* other sets than the host goes on with */
        if (pick(0, 7) == 0) s.kept[0]++, alike = false;                     /* other rows */
        s.table.resize(s.rows * kCapacity);
        for (int &page : s.table) page = pick(0, 999);
        s.positions.assign(s.groups * s.rows * s.stride, -7);
        s.slots = s.positions; /* in other pages by now */
        for (int r = 0; r < s.rows; r++) {
            const int before = pick(0, 3) == 0 ? 0 : pick(1, kCapacity - 2);
            s.kept.push_back(before);
            s.lengths.push_back(before == 0 ? pick(0, 1) : before + 1);
            if (before > 1 && pick(0, 11) == 0) s.lengths[r] = pick(0, 1) ? before : before + 2, alike = false;
            for (int g = 0; g < s.groups; g++) {
                std::vector<int> set(before);
                for (int t = 0; t < before; t++) set[t] = t;
                std::shuffle(set.begin(), set.end(), rng);
                set.resize(min(before, s.size - 1));
                std::sort(set.begin(), set.end());
                std::copy(set.begin(), set.end(), s.positions.begin() + s.At(g, r));
                if (!paged) std::copy(set.begin(), set.end(), s.slots.begin() + s.At(g, r)); /* only the new one is written */
            }
        }
        const Sets    was = s;
        uint32_t      no_sets = 0;
        lim_cuda_join join = {};
        join.call.n_rows = s.rows, join.call.budget = s.size, join.call.set_stride = s.stride;
        join.call.lengths = (uint64_t)s.lengths.data();
        join.call.table = paged ? (uint64_t)s.table.data() : 0, join.call.table_stride = kCapacity, join.call.page_shift = s.shift;
        join.call.set = (uint64_t)s.slots.data(), join.call.positions = (uint64_t)s.positions.data();
        join.kept = (uint64_t)s.kept.data(), join.no_sets = (uint64_t)&no_sets;
        join.group_stride = s.rows * s.stride, join.groups = s.groups;
        for (int g = 0; g < s.groups; g++) {
            for (int r = 0; r < s.rows; r++) blockIdx = {(unsigned)r, (unsigned)g, 0}, lim_join(join);
        }
        ASSERT_EQ(no_sets, alike ? 0u : 1u);
        (alike ? joined : dense)++;
        std::vector<int> positions = was.positions, slots = was.slots;
        for (int g = 0; alike && g < s.groups; g++) {
            for (int r = 0; r < s.rows; r++) {
                const int count = min(s.lengths[r], s.size);
                for (int t = 0; t < count; t++) {
                    int &position = positions[s.At(g, r) + t];
                    if (t == count - 1) position = s.lengths[r] - 1;
                    slots[s.At(g, r) + t] = paged ? s.table[r * kCapacity + (position >> s.shift)] << s.shift | (position & ((1 << s.shift) - 1)) : position;
                }
            }
        }
        ASSERT_EQ(s.positions, positions) << "and nothing else was written";
        ASSERT_EQ(s.slots, slots);
    }
    EXPECT_GT(joined, 500);
    EXPECT_GT(dense, 500);
}

}  // namespace
