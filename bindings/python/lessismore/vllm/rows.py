"""The rows of a step: which decode, and what is left of the step without them."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

# Fields of CommonAttentionMetadata: with a number for each row, for each token; worked out from others when they are asked
# for; what a step without its first rows has as the whole step has it; what is changed by hand below.
PER_ROW = ("seq_lens", "block_table_tensor", "is_prefilling", "seq_lens_cpu_upper_bound", "req_idx", "replayssm_decode_base_cpu",
           "_seq_lens_cpu", "_num_computed_tokens_cpu")  # fmt: skip
PER_TOKEN = ("slot_mapping", "positions")
PRIVATE = ("_num_computed_tokens_cache", "_token_to_req_indices_cache")
SHARED = ("max_query_len", "max_seq_len", "causal")
OWN = ("query_start_loc", "query_start_loc_cpu", "num_reqs", "num_actual_tokens", "mm_req_doc_ranges")
# Fields of steps that are left to vLLM.
REFUSED = {
    "rswa_prefix_lens": "a reference window",
    "dcp_local_seq_lens": "K/V that is spread over ranks",
    "dcp_local_seq_lens_cpu": "K/V that is spread over ranks",
    "dcp_local_seq_lens_cpu_upper_bound": "K/V that is spread over ranks",
    "logits_indices_padded": "layers that compute a prompt's last token only",
    "num_logits_indices": "layers that compute a prompt's last token only",
    "max_logits_per_req": "layers that compute a prompt's last token only",
    "encoder_seq_lens": "attention to an encoder",
    "encoder_seq_lens_cpu": "attention to an encoder",
}
KNOWN = frozenset(PER_ROW + PER_TOKEN + PRIVATE + SHARED + OWN + tuple(REFUSED))


@dataclasses.dataclass
class Plan:
    """What a step's metadata says to our layers. Without rows everything is vLLM's."""

    rows: int = 0  # the first tokens of the step: ours, a row each
    rest: Any = None  # vLLM's metadata for the requests behind them; None: there are none
    tokens: int = 0  # of the whole step
    requests: int = 0  # whose tokens are ours
    lengths: Any = None  # what each row sees, its pages and its request; None: a row is a request
    table: Any = None
    owner: Any = None


@dataclasses.dataclass(frozen=True)
class Split:
    """requests decode, with so many tokens in all, each of them a row; reason: why none of the step's do."""

    requests: int = 0
    rows: int = 0
    whole: bool = False  # the step has no other requests
    single: bool = True  # each has one token
    reason: Optional[str] = None


def leading(starts: Any, n: int, most: int) -> tuple[int, int, bool]:
    """How many of the first requests have at least one token and at most so many; their tokens; whether each has one.
    starts: [n + 1] on the CPU, where each request's tokens begin."""
    tokens, single = 0, True
    for request, length in enumerate((starts[1 : n + 1] - starts[:n]).tolist()):
        if not 1 <= length <= most:
            return request, tokens, single
        tokens, single = tokens + length, single and length == 1
    return n, tokens, single


def unknown(common: Any) -> Optional[str]:
    """A field that says something which this version does not know; None: there is none."""
    for field in dataclasses.fields(common):
        if field.name not in KNOWN and getattr(common, field.name) is not None:
            return field.name
    return None


def split(common: Any, most_rows: int, capacity: int, mixed: bool, most_tokens: int = 1) -> Split:
    """Which rows of a step are ours. common: vLLM's CommonAttentionMetadata; mixed: also of a step with prompts; most_tokens: that a
    request which decodes may have, more than one where tokens are speculated."""
    n = common.num_reqs
    if common.causal is not True:
        return Split(reason="attention that is not causal")
    for name, reason in REFUSED.items():
        if getattr(common, name, None) is not None:
            return Split(reason=reason)
    field = unknown(common)
    if field is not None:
        return Split(reason=f"a step with {field}, which is not known")
    if common.max_seq_len > capacity:
        return Split(reason=f"a context of more than {capacity} tokens")
    if common.max_query_len == 1:
        found = Split(n, n, True)
    elif common.max_query_len <= most_tokens:
        found = Split(n, common.num_actual_tokens, True, False)
    else:
        requests, rows, single = leading(common.query_start_loc_cpu, n, most_tokens)
        found = Split(requests, rows, False, single)
        if rows == 0:
            return Split(reason="prompts")
        if requests == n:  # then none has more, whatever max_query_len says
            return Split(reason="rows whose tokens are not known")
        if not mixed:
            return Split(reason="steps with prompts")
    if found.rows > most_rows:
        return Split(reason=f"more than {most_rows} rows")
    return found


def behind(common: Any, n: int, tokens: int) -> Any:
    """A step without its first n requests, which have so many tokens."""

    def cut(values: Any, first: int) -> Any:
        return None if values is None else values[first:]

    changes = {
        "query_start_loc": common.query_start_loc[n:] - tokens,
        "query_start_loc_cpu": common.query_start_loc_cpu[n:] - tokens,
        "num_reqs": common.num_reqs - n,
        "num_actual_tokens": common.num_actual_tokens - tokens,
    }
    for names, first in ((PER_ROW, n), (PER_TOKEN, tokens)):
        for name in names:
            if hasattr(common, name):
                changes[name] = cut(getattr(common, name), first)
    for name in PRIVATE:  # worked out from the others when they are asked for
        if hasattr(common, name):
            changes[name] = None
    ranges = getattr(common, "mm_req_doc_ranges", None)
    if ranges is not None:
        changes["mm_req_doc_ranges"] = {row - n: r for row, r in ranges.items() if row >= n}
    return dataclasses.replace(common, **changes)
