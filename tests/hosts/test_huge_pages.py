"""K and V in huge pages: a host's texts stay what they are while its memory is moved."""

import platform
from pathlib import Path

import pytest
from checks import SPARSE, solved_all, sparse_only

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")


def moves() -> bool:
    """Whether this system has huge pages of 2 MB and moves memory to them: since Linux 6.1."""
    version = tuple(int(x) for x in platform.release().split("-")[0].split(".")[:2])
    return version >= (6, 1) and SYSTEM.exists() and "[never]" not in (SYSTEM / "enabled").read_text() \
        and int((SYSTEM / "hpage_pmd_size").read_text()) == 2 << 20  # fmt: skip


@pytest.mark.parametrize("setting", ["on", "off"])
def test_texts_stay_while_their_memory_moves(setting, native, problems):
    """Five streams of a megabyte a layer: at least a page of each layer lies in them."""
    some = problems[:5]
    result = native("together", some, {**SPARSE, "LESSISMORE_HUGE_PAGES": setting}, unified=False, threads=2, context=4096 * len(some))
    solved_all(result, some)
    sparse_only(result)
    moved = sum(c["huge_page_bytes"] for c in result.stats["contexts"])
    assert moved % (2 << 20) == 0
    assert (moved > 0) == (setting == "on" and moves())
