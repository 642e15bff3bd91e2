"""Runs a file's tests without pytest, which GPU machines need not have. `--quick` is for the sanitizers; other arguments
pick tests by part of their name. LIM_SEED repeats a run."""

import os
import random
import sys
import time
import traceback

import torch

SEED = int(os.environ.get("LIM_SEED", "0")) or random.SystemRandom().randrange(1 << 31)
QUICK = "--quick" in sys.argv


def main(tests):
    torch.manual_seed(SEED)
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")]
    failed = 0
    for name, f in tests.items():
        if not name.startswith("test_") or wanted and not any(w in name for w in wanted):
            continue
        begin = time.time()
        try:
            f()
            torch.cuda.synchronize()
            print(f"ok    {name}  {time.time() - begin:.1f} s", flush=True)
        except Exception as e:
            failed += 1
            print(f"FAIL  {name}: {str(e)[:600]}", flush=True)
            if not isinstance(e, AssertionError):
                traceback.print_exc()
    print(f"seed {SEED}: {'FAILED' if failed else 'all passed'}", flush=True)
    sys.exit(failed != 0)
