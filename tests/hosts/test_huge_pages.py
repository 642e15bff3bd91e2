"""K and V in huge pages: a host's texts stay what they are while its memory is moved."""

import mmap
from pathlib import Path

import pytest
from checks import SPARSE, solved_all, sparse_only

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1


def moves() -> bool:
    """Whether this system has huge pages of 2 MB, lets them be used, and moves memory to them."""
    if not SYSTEM.exists() or "[never]" in (SYSTEM / "enabled").read_text() or int((SYSTEM / "hpage_pmd_size").read_text()) != 2 << 20:
        return False
    memory = mmap.mmap(-1, 6 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * len(memory))
    try:
        memory.madvise(COLLAPSE)
    except OSError:
        return False
    return True


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
