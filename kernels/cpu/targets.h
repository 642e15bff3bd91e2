/* The instruction sets that the SIMD sources are compiled for. Must come before any Highway header.
 *
 * Left out on purpose: SSSE3 (nothing that decodes language models has it without SSE4), AVX3_DL (its extra
 * instructions are of no use here, and it would be a second copy of AVX3) and the sizeless sets (SVE, RVV),
 * because the kernels keep arrays of vectors in registers. */
#ifndef LESSISMORE_CPU_TARGETS_H
#define LESSISMORE_CPU_TARGETS_H

#ifdef LIM_CPU_FEW_TARGETS /* AVX2 and the baseline: under sanitizers each one takes a minute to compile */
#define LIM_CPU_LEFT_OUT (HWY_AVX3 | HWY_SSE4)
#else
#define LIM_CPU_LEFT_OUT 0
#endif
#define HWY_DISABLED_TARGETS (LIM_CPU_LEFT_OUT | HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE_256 | HWY_SVE2 | HWY_SVE2_128 | HWY_RVV)

/* Highway's debug checks call into its shared library, which is not linked. */
#define HWY_IS_DEBUG_BUILD 0

#endif
