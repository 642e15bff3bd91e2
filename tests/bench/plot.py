#!/usr/bin/env python3
"""README's picture: whole decode on a CPU, beside every engine that was measured, and in vLLM on a GPU, with and without the library.

    python3 tests/bench/plot.py docs/measured.json docs/performance.png      (needs matplotlib)

docs/measured.json has the figures of the tables in docs/performance.md and docs/vllm.md.
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of its backend)

OURS, HOST, OTHER, NEIGHBOUR = "#0a7d55", "#6b7686", "#b0b7c3", "#c08a3e"


def cpu(ax, rows: list[dict]) -> None:
    contexts = [r["context"] for r in rows]
    for key, color, width, label in (
        ("flash_on", OTHER, 1.6, "llama.cpp, flash attention on"),
        ("flash_off", HOST, 1.6, "llama.cpp, off"),
        ("ik", NEIGHBOUR, 1.6, "ik_llama.cpp, the better of on and off"),
        ("lessismore", OURS, 2.4, "llama.cpp with lessismore"),
    ):
        ax.plot(contexts, [r[key] for r in rows], "o-", color=color, linewidth=width, label=label)
    for r in rows:
        ax.annotate(
            f"{r['ratio']:.1f}×",
            (r["context"], r["lessismore"]),
            textcoords="offset points",
            xytext=(0, -15),
            ha="center",
            color=OURS,
            fontsize=9,
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(contexts, [f"{c // 1024}K" if c >= 1024 else str(c) for c in contexts])
    ax.set_yscale("log")
    ax.set_ylim(bottom=min(r["lessismore"] for r in rows) * 0.65)
    low, high = ax.get_ylim()
    ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if low < t < high]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("tokens of context")
    ax.set_ylabel("ms per token")
    ax.set_title("CPU, 2 threads of a Zen 5; × against the best of the others\nQwen3-0.6B's shape, Q4_0, f16 K/V", fontsize=10)


def gpu(ax, rows: list[dict]) -> None:
    places = range(len(rows))
    ax.bar([p - 0.2 for p in places], [r["flash_attention"] for r in rows], 0.4, color=HOST, label="vLLM, FlashAttention 3")
    ax.bar([p + 0.2 for p in places], [r["lessismore"] for r in rows], 0.4, color=OURS, label="the same with lessismore")
    for p, r in zip(places, rows):
        ax.annotate(
            f"{r['flash_attention'] / r['lessismore']:.2f}×",
            (p + 0.2, r["lessismore"]),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
            color=OURS,
            fontsize=9,
        )
    ax.set_xticks(list(places), [r["case"] for r in rows], fontsize=8)
    ax.set_xlabel("rows × tokens of context")
    ax.set_ylabel("ms per decode step")
    ax.set_title("GPU, one H200: vLLM 0.26\nQwen3-8B's shape, bf16, CUDA graphs", fontsize=10)


def main(source: str, target: str) -> None:
    with open(source) as f:
        measured = json.load(f)
    fig, axes = plt.subplots(1, 2, figsize=(10.4, 3.9), dpi=130)
    cpu(axes[0], measured["cpu"]["rows"])
    gpu(axes[1], measured["gpu"]["rows"])
    for ax in axes:
        ax.grid(True, axis="y", alpha=0.25)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=8.5, loc="upper left")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    fig.suptitle("Decode time, token budget 2,048, random weights", fontsize=11)
    fig.tight_layout()
    fig.savefig(target)


if __name__ == "__main__":
    main(*sys.argv[1:3])
