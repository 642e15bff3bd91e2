"""Reads the compiler's resource report of the kernels (nvcc -Xptxas -v) and fails on a regression: a kernel that
spills, or that uses more registers than its occupancy allows. Prints registers, static shared memory and the
blocks that fit a multiprocessor by registers, per target."""

import re
import sys

THREADS = {"attend": 128, "short": 256, "select": 512, "probe": 256, "tally": 128, "join": 256, "visible": 1024}
# Spills that are known and judged harmless. The largest tile of the types that are widened on the way:
ALLOWED = {
    **{f"lim_attend_{kind}_256_16_{how}": 80 for kind in ("q8_0", "q4_0") for how in ("direct", "indexed")},
    # A register or two, with four (128) and three (96) blocks on a multiprocessor of sm_100 and sm_120.
    "lim_attend_q8_0_128_8_direct": 8,
    "lim_attend_q8_0_96_8_direct": 16,
    # With 64 registers two blocks share a multiprocessor. Most of it is in code for heads that hardly differ.
    "lim_select_union": 430,
    "lim_select_filtered": 600,
}


def wanted_blocks(name):
    """What plan.c counts on (attend_shape) and __launch_bounds__ states."""
    if name in ("lim_select_union", "lim_select_filtered"):
        return 2
    if name in ("lim_select_mass", "lim_tally", "lim_join", "lim_visible"):
        return 1
    if name == "lim_probe":
        return 6
    if name.startswith("lim_short_"):
        return 1
    kind, dim, heads, how = re.fullmatch(r"lim_attend_(\w+?)_(?:upto)?(64|96|128|256)_(8|16)_(\w+)", name).groups()
    if how.startswith("filtered") or int(dim) > 128 or int(heads) > 8:
        return 2
    return 4 if kind in ("q8_0", "q4_0") and dim == "128" else 3


def read(path):
    found, name, target = {}, None, None
    for line in open(path):
        m = re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line)
        if m:
            name, target = m.groups()
            found[name, target] = {"registers": 0, "spill": 0, "shared": 0, "stack": 0}
            inside = name
        m = re.search(r"Function properties for (\w+)", line)
        if m:
            inside = m.group(1)
        m = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if m and name:
            found[name, target]["spill"] += int(m.group(2)) + int(m.group(3))
            if inside == name:
                found[name, target]["stack"] = int(m.group(1))
        m = re.search(r"Used (\d+) registers", line)
        if m and name:
            found[name, target]["registers"] = int(m.group(1))
            m = re.search(r"(\d+) bytes smem", line)
            found[name, target]["shared"] = int(m.group(1)) if m else 0
    return found


def main():
    found = read(sys.argv[1])
    if not found:
        sys.exit(f"{sys.argv[1]}: no kernels in the report")
    targets = sorted({t for _, t in found})
    bad = []
    print(f"{'kernel':<36}" + "".join(f"{t + ' regs/blocks':>22}" for t in targets))
    for name in sorted({n for n, _ in found}):
        row = f"{name:<36}"
        for t in targets:
            r = found.get((name, t))
            if r is None and (name.startswith("lim_short_") or name.endswith(("_tma", "_filtered", "_paged"))) and t != "sm_90a":
                row += f"{'':>22}"
                continue
            if r is None:
                bad.append(f"{name} is missing for {t}")
                continue
            threads = THREADS[name.split("_")[1]]
            granted = -(-r["registers"] // 8) * 8
            blocks = 65536 // (granted * threads)
            row += f"{r['registers']:>15} / {blocks:<4}"
            if r["spill"] > ALLOWED.get(name, 0) * 2:
                bad.append(f"{name} for {t} spills {r['spill']} bytes")
            if blocks < wanted_blocks(name):
                bad.append(f"{name} for {t}: {r['registers']} registers leave room for {blocks} blocks, not {wanted_blocks(name)}")
        print(row)
    for b in bad:
        print("FAIL", b)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
