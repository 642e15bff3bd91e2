#include "stream_bridge.h"

#include "context.h"
#include "driver.h"

int lim_cuda_bridge_begin(const lim_cuda_bridge *t, void *before, int look) {
    int result = lim_cuda_enter(t->context);
    if (result == 0 && before != 0) result = cuStreamWaitEvent(t->stream, before, 0);
    if (result != 0 || !look) return result;
    void          *params[1] = {(void *)&t->visible};
    const unsigned parts = (unsigned)VisibleParts(t->visible.n_slots, t->visible.table != 0);
    return cuLaunchKernel(t->function, (unsigned)t->visible.n_rows, parts, 1, LIM_CUDA_VISIBLE_WARPS * 32, 1, 1, 0, t->stream, params, 0);
}

int lim_cuda_bridge_end(const lim_cuda_bridge *t, void *after) { return cuEventRecord(after, t->stream); }

int lim_cuda_bridge_capture(const lim_cuda_bridge *t) {
    const int result = lim_cuda_enter(t->context);
    return result == 0 ? (int)cuStreamBeginCapture(t->stream, CU_STREAM_CAPTURE_MODE_RELAXED) : result;
}

int lim_cuda_bridge_captured(const lim_cuda_bridge *t, void *before, void **ready) {
    CUgraph     graph = 0;
    CUgraphExec exec = 0;
    int         result = before != 0 ? (int)cuStreamWaitEvent(t->stream, before, 0) : 0;
    const int   ended = cuStreamEndCapture(t->stream, &graph); /* in any case: the streams are free again */
    *ready = 0;
    if (before != 0 && result == 0) result = ended;
    if (before != 0 && result == 0) result = cuGraphInstantiateWithFlags(&exec, graph, 0);
    if (result == 0) *ready = exec;
    if (graph != 0) cuGraphDestroy(graph);
    return result;
}

int lim_cuda_bridge_replay(const lim_cuda_bridge *t, void *ready) { return cuGraphLaunch(ready, t->stream); }

void lim_cuda_bridge_forget(const lim_cuda_bridge *t, void *ready) {
    if (lim_cuda_enter(t->context) == 0) cuGraphExecDestroy(ready);
}
