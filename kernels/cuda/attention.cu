/* The attention kernels' entry points: lim_attend_<type>_<dim>_<heads>_<direct|indexed>, where heads is how
 * many query heads of a KV head there is room for (8 or 16) and indexed ones read a block table or a list. A dim upto<n> is any
 * multiple of 16 up to n. For Hopper ..._tma too, direct by TMA, ..._filtered, the same for a selection layer's long rows
 * (logit_filter.h), both also ..._paged, of pages of whole tiles, and lim_short_..., for what is short: a cluster of blocks for
 * each KV head of a row. */
#include "attention.cuh"

using namespace lessismore;

/* name: of the dim. */
#define ATTEND(type, Rows, dim, name, heads, where, indexed)                                                                          \
    extern "C" __global__ void __launch_bounds__(ThreadsOf(false), LIM_CUDA_MOST_BLOCKS(Rows::kPacked && !Rows::kPadded, dim, heads)) \
        lim_attend_##type##_##name##_##heads##_##where(const __grid_constant__ lim_cuda_args args) {                                  \
        Attend<Rows, dim, heads / 8, indexed, false>(args);                                                                           \
    }
#define ATTEND_DIM(type, Rows, dim, name)                 \
    ATTEND(type, Rows<dim>, dim, name, 8, direct, false)  \
    ATTEND(type, Rows<dim>, dim, name, 8, indexed, true)  \
    ATTEND(type, Rows<dim>, dim, name, 16, direct, false) \
    ATTEND(type, Rows<dim>, dim, name, 16, indexed, true)

template <int kDim> using F16Rows = HalfRows<kDim, false>;
template <int kDim> using BF16Rows = HalfRows<kDim, true>;
template <int kDim> using PaddedF16Rows = PaddedRows<kDim, false>;
template <int kDim> using PaddedBF16Rows = PaddedRows<kDim, true>;
template <int kDim> using Q8Rows = PackedRows<kDim, Q8_0>;
template <int kDim> using Q4Rows = PackedRows<kDim, Q4_0>;
template <int kDim> using Q8Rows96 = PackedRows<kDim, Q8_0, 96>;
template <int kDim> using Q4Rows96 = PackedRows<kDim, Q4_0, 96>;

#define ATTEND_TYPE(type, Rows)      \
    ATTEND_DIM(type, Rows, 64, 64)   \
    ATTEND_DIM(type, Rows, 128, 128) \
    ATTEND_DIM(type, Rows, 256, 256)
#define ATTEND_PADDED(type, Rows)        \
    ATTEND_DIM(type, Rows, 128, upto128) \
    ATTEND_DIM(type, Rows, 256, upto256)

/* As Phi-3 mini has them: one query head for each KV head. */
#define ATTEND_96(type, Rows)                          \
    ATTEND(type, Rows<128>, 128, 96, 8, direct, false) \
    ATTEND(type, Rows<128>, 128, 96, 8, indexed, true)

#define TMA(type, bf16, dim, name, paged, filter)                                                                    \
    extern "C" __global__ void __launch_bounds__(ThreadsOf(false), filter ? 2 : LIM_CUDA_MOST_BLOCKS(false, dim, 8)) \
        lim_attend_##type##_##dim##_8_##name(const __grid_constant__ lim_cuda_args args) {                           \
        Attend<TmaRows<dim, bf16>, dim, 1, paged, false, filter>(args);                                              \
    }
#define TMA_DIM(type, bf16, dim)                 \
    TMA(type, bf16, dim, tma, false, false)      \
    TMA(type, bf16, dim, filtered, false, true)  \
    TMA(type, bf16, dim, tma_paged, true, false) \
    TMA(type, bf16, dim, filtered_paged, true, true)
#define TMA_TYPE(type, bf16) \
    TMA_DIM(type, bf16, 64)  \
    TMA_DIM(type, bf16, 128)

#define TMA_PACKED(type, Block, dim)                                                                   \
    extern "C" __global__ void __launch_bounds__(ThreadsOf(false), LIM_CUDA_MOST_BLOCKS(true, dim, 8)) \
        lim_attend_##type##_##dim##_8_tma(const __grid_constant__ lim_cuda_args args) {                \
        Attend<TmaPackedRows<dim, Block>, dim, 1, false, false>(args);                                 \
    }

#define SHORT(type, Rows, dim, name, where, indexed)                                        \
    extern "C" __global__ void __launch_bounds__(ThreadsOf(true), 1)                        \
        lim_short_##type##_##name##_8_##where(const __grid_constant__ lim_cuda_args args) { \
        Attend<Rows<dim>, dim, 1, indexed, true>(args);                                     \
    }
#define SHORT_DIM(type, Rows, dim, name)        \
    SHORT(type, Rows, dim, name, direct, false) \
    SHORT(type, Rows, dim, name, indexed, true)
#define SHORT_TYPE(type, Rows)    \
    SHORT_DIM(type, Rows, 64, 64) \
    SHORT_DIM(type, Rows, 128, 128)

ATTEND_TYPE(f16, F16Rows)
ATTEND_TYPE(bf16, BF16Rows)
ATTEND_TYPE(fp8, ByteRows)
ATTEND_TYPE(q8_0, Q8Rows)
ATTEND_TYPE(q4_0, Q4Rows)
ATTEND_96(q8_0, Q8Rows96)
ATTEND_96(q4_0, Q4Rows96)
ATTEND_PADDED(f16, PaddedF16Rows)
ATTEND_PADDED(bf16, PaddedBF16Rows)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
TMA_TYPE(f16, false)
TMA_TYPE(bf16, true)
TMA_PACKED(q8_0, Q8_0, 64)
TMA_PACKED(q8_0, Q8_0, 128)
TMA_PACKED(q4_0, Q4_0, 64)
TMA_PACKED(q4_0, Q4_0, 128)
SHORT_TYPE(f16, F16Rows)
SHORT_TYPE(bf16, BF16Rows)
SHORT_TYPE(fp8, ByteRows)
SHORT_TYPE(q8_0, Q8Rows)
SHORT_TYPE(q4_0, Q4Rows)
SHORT_DIM(q8_0, Q8Rows96, 128, 96)
SHORT_DIM(q4_0, Q4Rows96, 128, 96)
SHORT_DIM(f16, PaddedF16Rows, 128, upto128)
SHORT_DIM(bf16, PaddedBF16Rows, 128, upto128)
#endif
