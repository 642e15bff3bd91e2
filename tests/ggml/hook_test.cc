// The hook where Go has no session to give, and where contexts come and go: what is not taken part in is the host's own.
#include <cstring>

#include <gtest/gtest.h>

#include "shim.h"

extern "C" void *ggml_backend_init(void);

namespace {

constexpr int kCpu = 0, kGpu = 1;

// Whether a backend's graphs are computed by the host alone: a session is what the hook's are given.
bool is_hosts_own(int device) {
    const int    before = shim_sessions();
    void **const b = shim_backend(device);
    EXPECT_NE(b, nullptr);
    const bool own = shim_sessions() == before;
    shim_free(b);
    EXPECT_EQ(shim_sessions(), before);
    return own;
}

// The self-test on a device is tried once: in a process of its own.
TEST(HookDeathTest, ASelfTestOnAGpuThatCannotBegin) {
    GTEST_FLAG_SET(death_test_style, "threadsafe"); // one that is forked from this one is left alone
    EXPECT_EXIT(
        {
            if (shim_load() != 0) _exit(1);
            shim_refuse(1);
            shim_free(shim_backend(kGpu));
            shim_refuse(0);
            _exit(strstr(shim_said(), "the self-test cannot begin") != nullptr && is_hosts_own(kGpu) ? 0 : 2);
        },
        testing::ExitedWithCode(0), "");
}

TEST(Hook, SessionsThatAreRefused) {
    shim_refuse(1);
    EXPECT_NE(shim_load(), 0);
    EXPECT_STREQ(shim_said(), "the self-test cannot begin");
    shim_refuse(0);
    ASSERT_EQ(shim_load(), 0) << "a later load is another attempt: " << shim_said();
    for (const int device : {kCpu, kGpu}) {
        EXPECT_FALSE(is_hosts_own(device));
        shim_refuse(1);
        EXPECT_TRUE(is_hosts_own(device));
        shim_refuse(0);
        EXPECT_FALSE(is_hosts_own(device));
    }
}

TEST(Hook, LoadedAgain) {
    void *const registry = ggml_backend_init();
    ASSERT_NE(registry, nullptr) << shim_said();
    EXPECT_EQ(ggml_backend_init(), registry);
    EXPECT_FALSE(is_hosts_own(kGpu));
}

TEST(Hook, ContextsInAnyOrder) {
    void **all[6];
    for (int i = 0; i < 6; i++) all[i] = shim_backend(i % 2 ? kGpu : kCpu);
    EXPECT_EQ(shim_sessions(), 6);
    for (const int i : {4, 0, 5, 3, 1, 2}) shim_free(all[i]);
    EXPECT_EQ(shim_sessions(), 0);
}

} // namespace
