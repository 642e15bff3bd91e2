"""Requests with several tokens in a step, as speculation has them: one row for each token, with a length of its own."""

from __future__ import annotations

from typing import Any, Optional

import torch


class Tokens:
    """What a step's tokens see, in memory that keeps its place: a captured graph goes on reading it."""

    def __init__(self, most: int, device: torch.device) -> None:
        """most: tokens of a step."""
        self.places = torch.arange(most, dtype=torch.int32, device=device)
        self._lengths = torch.zeros(most, dtype=torch.int32, device=device)
        self._table: Optional[torch.Tensor] = None  # as wide as the first one that comes

    def lengths(self, common: Any, requests: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What each of the first tokens of a step sees, its own included, and whose it is. Padding sees nothing: tokens behind the
        last request's, and those of requests that see nothing. Queues work, waits for nothing."""
        ends, seen = common.query_start_loc[1 : requests + 1], common.seq_lens[:requests]
        places = self.places[:tokens]
        owner = torch.searchsorted(ends, places, right=True)
        inside = owner < requests
        owner = owner.clamp_max(requests - 1)
        found = seen[owner] - (ends[owner] - 1 - places)
        torch.mul(found.clamp_min(0), inside, out=self._lengths[:tokens])
        return self._lengths[:tokens], owner

    def table(self, owner: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        """Each token's pages: those of the request whose it is."""
        if self._table is None or self._table.shape[1] != pages.shape[1]:
            self._table = torch.zeros(len(self.places), pages.shape[1], dtype=pages.dtype, device=pages.device)
        return torch.index_select(pages, 0, owner, out=self._table[: len(owner)])
