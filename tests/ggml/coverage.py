"""The branches of the shim that nothing has taken: of coverage.sh's runs, against branches.txt, which names those that nothing can take, and why.

    coverage.py EXPORT         EXPORT: what `llvm-cov export` prints

A line of branches.txt is `FILE | true or false | CONDITION`, the condition as it is written; lines that begin with # say why of what follows. Exit
status 1: a branch is not taken and not named, or is named and taken.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

NAMED = Path(__file__).with_name("branches.txt")


def conditions(of: dict) -> dict[tuple[int, str], list[int]]:
    """How often each condition of a file was true, and false: all of a template's instances together."""
    lines = Path(of["filename"]).read_text().splitlines()
    found: dict[tuple[int, str], list[int]] = {}
    for line, column, end_line, end_column, true, false, *_ in of["branches"]:
        text = lines[line - 1][column - 1 : end_column - 1 if end_line == line else None]
        counts = found.setdefault((line, f"{column} {text}"), [0, 0])
        counts[0] += true
        counts[1] += false
    return found


def main(export: str) -> int:
    named = Counter(
        tuple(part.strip() for part in line.split("|", 2))
        for line in NAMED.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    )
    left, all_branches, all_missing, unknown = named.copy(), 0, 0, []
    for of in json.loads(Path(export).read_text())["data"][0]["files"]:
        name, missing = Path(of["filename"]).name, 0
        found = conditions(of)
        for (line, where), counts in sorted(found.items()):
            for outcome, count in zip(("true", "false"), counts, strict=True):
                if count:
                    continue
                missing += 1
                branch = (name, outcome, where.split(" ", 1)[1])
                if left[branch] > 0:
                    left[branch] -= 1
                else:
                    unknown.append(f"{name}:{line}: never {outcome}: {branch[2]}")
        all_branches, all_missing = all_branches + 2 * len(found), all_missing + missing
        if found:
            print(f"{name:14} {2 * len(found) - missing:5} of {2 * len(found):5} branches taken")
    print(
        f"{'all':14} {all_branches - all_missing:5} of {all_branches:5}; {named.total() - left.total()} of the others are named in {NAMED.name}"
    )
    taken = [f"{file}: is {outcome} after all: {text}" for (file, outcome, text), n in left.items() if n > 0]
    print(*unknown, *taken, sep="\n")
    return 1 if unknown or taken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
