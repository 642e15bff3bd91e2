"""One host holding one long context, told in turn to decode.

Job: as native.py's, and {"context": tokens, "flash", "threads", "kv"}, where they differ from that "fill_threads", and "in_place":
see engine.fill_context; answers {"event": "filled", …} once, then to every line {"steps": m} on stdin {"ms": [...]}.
Each answer begins at the same position again, so all measure the same length. To {"rows": r, "prompt": m}
{"prompt": ms, "decode": ms, "mixed": ms}: a prompt, r rows, and both in one batch. "sequences": as many as that takes.
{"threads": n} and {"context": tokens} change the host's threads and shorten the context, {"tokens": its length} says so.
"""

import engine
import protocol
from native import open_host

BLOCK = 512


def main():
    job = protocol.job()
    api = open_host(job["host"], job.get("library"), job.get("environ", {}))
    keep = engine.quiet(api, job.get("log_level", 3))
    model = engine.Model(api, job["model"])
    n = job["context"]
    ctx = engine.Context(
        model,
        n + 2 * BLOCK,
        n_seq=job.get("sequences", 2),
        threads=job.get("fill_threads", job["threads"]),
        flash=job["flash"],
        unified=True,
        kv=job.get("kv", "f16"),
        n_batch=BLOCK,
    )

    def steps(end, count):
        timed = engine.timed_steps(ctx, end, count)
        ctx.remove(0, end)
        return timed

    def fill(progress):
        end = engine.fill_context(ctx, n, block=BLOCK, in_place=job.get("in_place"), progress=progress)
        api.set_n_threads(ctx.ptr, job["threads"], job["threads"])
        return end

    protocol.turns(
        fill,
        steps,
        lambda end, rows, prompt: engine.timed_batches(ctx, end, rows, prompt),
        lambda count: api.set_n_threads(ctx.ptr, count, count),
        lambda tokens: engine.shorten_context(ctx, tokens, in_place=job.get("in_place")),
    )
    ctx.free()
    model.free()
    protocol.emit(event="end")
    del keep


if __name__ == "__main__":
    main()
