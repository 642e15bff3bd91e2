"""multiprocessing: what fork leaves of the library in a child is a clear error; spawn works (test_library.py)."""

import multiprocessing

import numpy as np

import lessismore


def attend(pipe, decoder):
    try:
        query, key = np.ones((2, 32), np.float32), np.ones((5, 1, 32), np.float32)
        pipe.send(float((decoder or lessismore.Engine(3).decoder()).attend(0, query, key, key).mean()))
    except BaseException as e:
        pipe.send(f"{type(e).__name__}: {e}")


def child(method, decoder):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=attend, args=(there, decoder))
    process.start()
    assert here.poll(60), "the child hangs"
    answer = here.recv()
    process.join(60)
    assert process.exitcode == 0
    return answer


def test_fork_after_load():
    with lessismore.Engine(3) as engine, engine.decoder() as decoder:
        attend_here, there = multiprocessing.Pipe()
        attend(there, decoder)
        assert attend_here.recv() == 1.0
        for inherited in (decoder, None):  # neither what came along nor anything new
            answer = child("fork", inherited)
            assert answer.startswith("ForkedError: ") and "was forked from process" in answer


def test_spawn_after_load():
    with lessismore.Engine(3):
        assert child("spawn", None) == 1.0
