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

    rows: int = 0  # the first ones of the step: one token each, ours
    rest: Any = None  # vLLM's metadata for the rows behind them; None: there are none
    tokens: int = 0  # of the whole step


@dataclasses.dataclass(frozen=True)
class Split:
    """rows decode; reason: why none of the step's do."""

    rows: int
    whole: bool  # the step has no other rows
    reason: Optional[str] = None


def leading(starts: Any, n: int) -> int:
    """How many of the first rows have one token. starts: [n + 1] on the CPU, where each row's tokens begin."""
    lengths = (starts[1 : n + 1] - starts[:n]).tolist()
    for row, length in enumerate(lengths):
        if length != 1:
            return row
    return n


def unknown(common: Any) -> Optional[str]:
    """A field that says something which this version does not know; None: there is none."""
    for field in dataclasses.fields(common):
        if field.name not in KNOWN and getattr(common, field.name) is not None:
            return field.name
    return None


def split(common: Any, most_rows: int, capacity: int, mixed: bool) -> Split:
    """Which rows of a step are ours. common: vLLM's CommonAttentionMetadata; mixed: also of a step with prompts."""
    n = common.num_reqs
    if common.causal is not True:
        return Split(0, False, "attention that is not causal")
    for name, reason in REFUSED.items():
        if getattr(common, name, None) is not None:
            return Split(0, False, reason)
    field = unknown(common)
    if field is not None:
        return Split(0, False, f"a step with {field}, which is not known")
    if common.max_seq_len > capacity:
        return Split(0, False, f"a context of more than {capacity} tokens")
    if common.max_query_len == 1:
        rows, whole = n, True
    else:
        rows, whole = leading(common.query_start_loc_cpu, n), False
        if rows == 0:
            return Split(0, False, "prompts")
        if rows == n:  # then none has more, whatever max_query_len says
            return Split(0, False, "rows whose tokens are not known")
        if not mixed:
            return Split(0, False, "steps with prompts")
    if rows > most_rows:
        return Split(0, False, f"more than {most_rows} rows")
    return Split(rows, whole)


def behind(common: Any, n: int) -> Any:
    """A step without its first n rows, of one token each."""

    def cut(values: Any) -> Any:
        return None if values is None else values[n:]

    changes = {
        "query_start_loc": common.query_start_loc[n:] - n,
        "query_start_loc_cpu": common.query_start_loc_cpu[n:] - n,
        "num_reqs": common.num_reqs - n,
        "num_actual_tokens": common.num_actual_tokens - n,
    }
    for name in PER_ROW + PER_TOKEN:
        if hasattr(common, name):
            changes[name] = cut(getattr(common, name))
    for name in PRIVATE:  # worked out from the others when they are asked for
        if hasattr(common, name):
            changes[name] = None
    ranges = getattr(common, "mm_req_doc_ranges", None)
    if ranges is not None:
        changes["mm_req_doc_ranges"] = {row - n: r for row, r in ranges.items() if row >= n}
    return dataclasses.replace(common, **changes)
