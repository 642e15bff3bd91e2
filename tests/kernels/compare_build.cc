/* What compare.cc calls in a build of the kernels. */
#include "dispatch.h"
#include "kernels.h"

#define COMPARE extern "C" __attribute__((visibility("default")))

COMPARE void        compare_attend(lim_cpu_call *call, int ith, int nth) { lim_cpu_attend(call, ith, nth); }
COMPARE size_t      compare_work_size(const lim_cpu_call *call, int nth) { return lim_cpu_work_size(call, nth); }
COMPARE const char *compare_target() { return lim_cpu_target(); }
COMPARE int         compare_force_target(const char *name) { return lim_cpu_force_target(name); }
