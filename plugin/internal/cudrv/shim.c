//go:build cuda

/* Every driver entry point is a hidden trampoline through a slot that is filled when the driver is first
 * wanted. The library so needs no libcuda.so.1 to be loaded, and other code in the process that has the real
 * driver never meets these. */
#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* CUresult, by number: the driver's header is not needed here. */
enum { NOT_INITIALIZED = 3,
       NO_DEVICE = 100,
       SHARED_OBJECT_INIT_FAILED = 303,
       NOT_FOUND = 500 };

/* All entry points return a CUresult, in the same register whatever their arguments. */
static int before_init(void) { return NOT_INITIALIZED; }
static int no_driver(void) { return NO_DEVICE; }
static int no_symbol(void) { return NOT_FOUND; }

#define CU(name) CUDRV_HIDDEN void *cudrv_slot_##name = (void *)before_init;
#include "symbols.def"
#undef CU

#if defined(__x86_64__)
#define CU(name) \
    __asm__(".text\n.p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name ",@function\n" #name ":\n  endbr64\n  jmp *cudrv_slot_" #name "(%rip)\n.size " #name ", .-" #name "\n");
#elif defined(__aarch64__)
#define CU(name)                                                                                                                                                                                                  \
    __asm__(".text\n.p2align 2\n.globl " #name "\n.hidden " #name "\n.type " #name ",%function\n" #name ":\n  bti c\n  adrp x16, cudrv_slot_" #name "\n  ldr x16, [x16, #:lo12:cudrv_slot_" #name "]\n  br x16\n" \
            ".size " #name ", .-" #name "\n");
#else
#error "the CUDA engine is for x86-64 and AArch64"
#endif
#include "symbols.def"
#undef CU

/* gorgonia.org/cu calls cuInit when the process starts, or when it loads this library, and ends the process
 * if that fails. It is told yes; cudrv_open asks the driver. */
CUDRV_HIDDEN int cuInit(unsigned flags) {
    (void)flags;
    return 0;
}

static const struct {
    const char *name;
    void      **slot;
} kTable[] = {
#define CU(name) {#name, &cudrv_slot_##name},
#include "symbols.def"
#undef CU
};

/* Go's build cache does not look at symbols.def: this file must change with it. */
_Static_assert(sizeof kTable / sizeof *kTable == 179, "symbols.def has another number of entry points");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int            result = NOT_INITIALIZED;
static char           error[256];

static void fill(void *f) {
    for (size_t i = 0; i < sizeof kTable / sizeof *kTable; i++) *kTable[i].slot = f;
}

static void open_once(void) {
    const char *name = secure_getenv("LESSISMORE_LIBCUDA");
    void       *driver = dlopen(name != NULL && *name != 0 ? name : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver == NULL) {
        const char *why = dlerror();
        snprintf(error, sizeof error, "%s", why != NULL ? why : "libcuda.so.1 cannot be opened");
        fill((void *)no_driver);
        result = NO_DEVICE;
        return;
    }
    for (size_t i = 0; i < sizeof kTable / sizeof *kTable; i++) {
        void *f = dlsym(driver, kTable[i].name);
        *kTable[i].slot = f != NULL ? f : (void *)no_symbol;
    }
    /* A capture that has begun has to end: a driver that cannot end one does not begin it. */
    if (cudrv_slot_cuStreamEndCapture == (void *)no_symbol) cudrv_slot_cuStreamBeginCapture_v2 = (void *)no_symbol;
    int (*init)(unsigned);
    *(void **)&init = dlsym(driver, "cuInit");
    result = init != NULL ? init(0) : SHARED_OBJECT_INIT_FAILED;
    if (result != 0) snprintf(error, sizeof error, "cuInit returned %d", result);
}

int cudrv_open(void) {
    pthread_once(&once, open_once);
    return result;
}

const char *cudrv_error(void) { return error; }
