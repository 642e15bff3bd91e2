"""What the ranks of one engine have to have in common: whether attention is in their graphs, and which layers choose."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Optional, Sequence, TypeVar

import torch

T = TypeVar("T")


def together(ranks: int) -> bool:
    """Whether this process and the others of its torch.distributed world are the ranks of one engine, and no one else."""
    distributed = torch.distributed
    return ranks > 1 and distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() == ranks


@contextlib.contextmanager
def _processes() -> Iterator[Any]:
    """A group of all ranks for what is in their processes' memory: the world's own is of GPUs. All enter at the same point."""
    group = torch.distributed.new_group(backend="gloo")
    yield group
    torch.distributed.destroy_process_group(group)


def every(own: T) -> list[T]:
    """What each rank has of it, in their order, on each of them: all call this at the same point."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    with _processes() as group:
        torch.distributed.all_gather_object(found, own, group=group)
    return found


def against(found: Sequence[tuple[Optional[str], dict[str, Any]]]) -> Optional[str]:
    """Why no rank may be sparse: one of them is not, or has other settings, as where a variable is not set on each machine. found: what
    speaks against each, and its settings."""
    for rank, (reason, _) in enumerate(found):
        if reason is not None:
            return f"rank {rank}: {reason}"
    settings = [own for _, own in found]
    for rank, own in enumerate(settings):
        for name in sorted({*own, *settings[0]}):  # machines may have other versions of this
            one, other = settings[0].get(name, "not known"), own.get(name, "not known")
            if one != other:
                return f"the ranks' settings differ: {name} is {one} on rank 0 and {other} on rank {rank}"
    return None


def first(make: Callable[[], T]) -> T:
    """What make() gives on the first rank, on each of them: all call this at the same point. What it raises there is raised everywhere."""
    distributed = torch.distributed
    said: list[object] = [None]
    with _processes() as group:
        if distributed.get_rank() == 0:
            try:
                said = [make()]
            except Exception as e:  # whatever it is, the others wait for an answer
                said = [e]
        distributed.broadcast_object_list(said, src=0, group=group)
    found = said[0]
    if isinstance(found, Exception):
        raise found
    return found  # type: ignore[return-value]
