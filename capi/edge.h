/* Between the C face (edge.c) and Go (abi.go). Nothing here is visible outside the library. */
#ifndef LESSISMORE_EDGE_H
#define LESSISMORE_EDGE_H

#include "../include/lessismore.h"

#define EDGE_HIDDEN __attribute__((visibility("hidden")))

/* Sets this thread's lim_last_error() to "<function>: <text>". */
EDGE_HIDDEN void edge_fail(const char *function, const char *text, size_t length);

/* Calls a host's logger. */
EDGE_HIDDEN void edge_log(lim_logger logger, void *user, int32_t level, const char *text);

#endif
