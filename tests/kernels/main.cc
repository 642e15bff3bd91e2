/* Prints the seed first, so that any failure can be repeated. */
#include <cstdio>

#include "gtest/gtest.h"
#include "reference.h"

int main(int argc, char **argv) {
    testing::InitGoogleTest(&argc, argv);
    printf("LIM_SEED=%llu, best target %s\n", (unsigned long long)Seed(), lim_cpu_target());
    return RUN_ALL_TESTS();
}
