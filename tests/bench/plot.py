#!/usr/bin/env python3
"""The README's picture from a benchmark's JSON: whole decode against context length.

    python3 tests/bench/plot.py build/bench.json docs/decode.png      (needs matplotlib)
"""
from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of its backend)


def main(source: str, target: str) -> None:
    rows = sorted((r for r in json.load(open(source))
                   if r["name"] == "decode" and r["kv_type"] == "f16" and r["threads"] == 2 and r["budget"] == 2048),
                  key=lambda r: r["context"])
    contexts = [r["context"] for r in rows]
    fig, ax = plt.subplots(figsize=(7.2, 3.6), dpi=150)
    ax.plot(contexts, [r["host_flash_on_ms"] for r in rows], "o-", color="#b0b7c3", label="llama.cpp, flash attention on")
    ax.plot(contexts, [r["host_flash_off_ms"] for r in rows], "o-", color="#6b7686", label="llama.cpp, flash attention off")
    ax.plot(contexts, [r["ms"] for r in rows], "o-", color="#0a7d55", linewidth=2.4, label="the same host with lessismore")
    for r in rows:
        ax.annotate(f"{r['ratio']:.1f}×", (r["context"], r["ms"]), textcoords="offset points", xytext=(0, -15),
                    ha="center", color="#0a7d55", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(contexts, [f"{c // 1024}K" if c >= 1024 else str(c) for c in contexts])
    ax.set_yscale("log")
    ax.set_ylim(bottom=min(r["ms"] for r in rows) * 0.65)
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if t > ax.get_ylim()[0] and t < ax.get_ylim()[1]]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens of context")
    ax.set_ylabel("ms per token")
    ax.set_title("Decode, Qwen3-0.6B shape, Q4_0, f16 K/V, 2 threads, budget 2,048", fontsize=10)
    ax.grid(True, alpha=0.25)
    ax.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    fig.tight_layout()
    fig.savefig(target)


if __name__ == "__main__":
    main(*sys.argv[1:3])
