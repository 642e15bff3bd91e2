/* Plans what is measured beside a call (probe.h). Plain C without the driver, like plan.c. */
#include "probe.h"

#include "layout.h"

#include <stdio.h>
#include <string.h>

#define REFUSE(...)                        \
    do {                                   \
        snprintf(text, size, __VA_ARGS__); \
        return 1;                          \
    } while (0)

int lim_cuda_check_probe(const lim_cuda_call *c, const lim_cuda_probe *p, char *text, size_t size) {
    if (c->mode != LIM_CUDA_SELECT) REFUSE("mode = %d: only a call that selects is probed", c->mode);
    if (c->kv_tokens != 0) REFUSE("kv_tokens = %lld: rows that share room are not probed", (long long)c->kv_tokens);
    if (p->row < 0 || p->row >= c->n_rows) REFUSE("row = %d is not one of the %d", p->row, c->n_rows);
    if (p->n_sets < 0 || p->n_sets > LIM_CUDA_MAX_PROBED) REFUSE("n_sets = %d is not in 0 .. %d", p->n_sets, LIM_CUDA_MAX_PROBED);
    const struct {
        const char *name;
        uint64_t    address;
        int         needed;
    } addresses[] = {
        {"own", p->own, 1},
        {"sets", p->sets, p->n_sets > 0},
        {"stamps", p->stamps, 0},
        {"kept", p->kept, 0},
        {"count", p->count, 0},
        {"sum", p->sum, p->count != 0},
        {"square", p->square, p->count != 0},
    };
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        if (addresses[i].needed && addresses[i].address == 0) REFUSE("%s = NULL", addresses[i].name);
        if (addresses[i].address % 4 != 0)
            REFUSE("%s = %#llx is not a multiple of 4", addresses[i].name, (unsigned long long)addresses[i].address);
    }
    if (p->n_sets == 0) return 0;
    if (p->set_budget < 1) REFUSE("set_budget = %d is not positive", p->set_budget);
    const int64_t most = p->set_budget < c->capacity ? p->set_budget : c->capacity;
    if (p->n_sets > 1 && p->set_stride < most)
        REFUSE("set_stride = %lld is less than the %lld tokens of a set", (long long)p->set_stride, (long long)most);
    return 0;
}

void lim_cuda_plan_probe(const lim_cuda_device *device, const lim_cuda_call *call, const lim_cuda_probe *probe,
                         lim_cuda_args *attend, lim_cuda_args *select, lim_cuda_probe_args *measure, lim_cuda_launch launches[3]) {
    const uint64_t row = (uint64_t)probe->row;
    lim_cuda_plan_all(device, call, attend, launches);

    /* The row as a call of its own. Without a table a slot is the position, and positions are what is wanted. */
    *select = *attend;
    select->no_sets = 0; /* of the call's own sets */
    select->call.n_rows = 1;
    select->call.lengths += row * 4;
    select->call.table = select->call.positions = 0;
    select->call.set = probe->own;
    select->call.set_stride = 0;
    select->gathered += row * 4;
    select->sums += row * (uint64_t)call->heads * 4;
    select->logits += row * (uint64_t)call->heads * (uint64_t)attend->room_stride * 4;
    launches[1].grid[1] = 1;

    memset(measure, 0, sizeof *measure);
    measure->probe = *probe;
    measure->length = select->call.lengths;
    measure->logits = select->logits;
    measure->sums = select->sums;
    measure->room_stride = attend->room_stride;
    measure->heads = call->heads;
    measure->own_budget = call->budget;
    measure->together = attend->together;
    lim_cuda_launch *l = &launches[2];
    memset(l, 0, sizeof *l);
    snprintf(l->name, sizeof l->name, "lim_probe");
    l->grid[0] = (uint32_t)call->heads;
    l->grid[1] = (uint32_t)probe->n_sets + 1;
    l->grid[2] = 1;
    l->block = LIM_CUDA_PROBE_THREADS;
}
