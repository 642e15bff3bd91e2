#!/usr/bin/env python3
"""What vLLM has for K/V at its default settings, with a model of Qwen3-8B's shape: without lessismore, and with its work memory.

room.py MAX_MODEL_LEN [stock]
"""

import os
import sys

import random_model
from engine import Served, keep, say

ROW = 32768


def main(longest, stock):
    settings = None if stock else {"budget": 2048, "layers": [2, 12]}
    served = Served(random_model.folder(), settings, load_format="dummy", max_model_len=longest)
    rows, tokens = served.config.scheduler_config.max_num_seqs, served.blocks * served.block
    most = rows if stock else served.context.max_rows
    about = dict(served.about(), max_model_len=longest, max_num_seqs=rows, sparse_rows=most, rows_of_32k=tokens // ROW)
    name = f"room-{longest}{'-stock' if stock else ''}"
    keep(name, **about)
    say(f"{name}: {about}")
    return stock or (served.context.reason is None and most == rows)


if __name__ == "__main__":
    good = main(int(sys.argv[1]), "stock" in sys.argv)
    sys.stdout.flush()
    os._exit(0 if good else 1)
