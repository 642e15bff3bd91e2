#!/usr/bin/env python3
"""The version, wherever it is stated: prints it, or fails where two places disagree; --set X.Y.Z writes it."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
NUMBER = r"(\d+)\.(\d+)\.(\d+)"
PLACES = (
    ("bindings/python/lessismore/_version.py", '__version__ = "{0}.{1}.{2}"'),
    ("plugin/internal/settings/version.go", 'Version = "{0}.{1}.{2}"'),
    ("include/lessismore.h", 'LIM_VERSION_STRING "{0}.{1}.{2}"'),
    ("include/lessismore.h", "LIM_VERSION_MAJOR  {0}\n"),
    ("include/lessismore.h", "LIM_VERSION_MINOR  {1}\n"),
    ("include/lessismore.h", "LIM_VERSION_PATCH  {2}\n"),
)


def main(arguments: "list[str]") -> int:
    stated = re.search(NUMBER, (ROOT / PLACES[0][0]).read_text()).groups()
    if arguments:
        if len(arguments) != 2 or arguments[0] != "--set" or not (new := re.fullmatch(NUMBER, arguments[1])):
            print("usage: version.py [--set X.Y.Z]", file=sys.stderr)
            return 2
        for name, form in PLACES:
            path = ROOT / name
            pattern = re.sub(r"\\?\{\d\\?\}", lambda _: r"\d+", re.escape(form))
            text, count = re.subn(pattern, form.format(*new.groups()), path.read_text())
            assert count == 1, (name, form)
            path.write_text(text)
        stated = new.groups()
    wrong = [
        f"{n} does not state {form.format(*stated).strip()}" for n, form in PLACES if form.format(*stated) not in (ROOT / n).read_text()
    ]
    number = ".".join(stated)
    if f"\n## {number}\n" not in (ROOT / "CHANGELOG.md").read_text():
        wrong.append(f"CHANGELOG.md has no section {number}")
    print("\n".join(wrong) or number, file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
