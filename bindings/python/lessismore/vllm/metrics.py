"""What was counted, on its way to vLLM's /metrics and to the statistics file.

The process that computes writes a small file now and then, the one that serves /metrics reads it. Both know the folder by an environment
variable, which vLLM's processes inherit. Reading the counts waits for the GPU: it is done only after someone has asked for /metrics.

Where several processes serve /metrics, each shows what prometheus_client finds in a folder of its own, whoever wrote it there. That nobody
can see whether someone has asked: the counts are then read whenever it is time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from typing import Any, Iterable, Iterator, NamedTuple, Optional

from .. import _files
from .._version import __version__

logger = logging.getLogger("vllm.lessismore")
VARIABLE = "LESSISMORE_VLLM_METRICS"
MOST_BYTES = 1 << 20
ASKED = "asked"  # a file whose time is that of the last request
SEVERAL = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's folder, where several processes serve /metrics


class Family(NamedTuple):
    """A metric, and its values by labels."""

    name: str
    text: str
    counter: bool
    labels: tuple[str, ...]
    values: list[tuple[tuple[str, ...], float]]


def announce() -> None:
    """In the first of vLLM's processes: makes the folder, and has its /metrics show what lies there. Elsewhere: nothing."""
    if VARIABLE in os.environ:
        return
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    folder = tempfile.mkdtemp(prefix="lessismore-vllm-")
    os.environ[VARIABLE] = folder
    atexit.register(_remove, folder, os.getpid())
    REGISTRY.register(Collector(folder))


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not a child that was forked
        shutil.rmtree(folder, ignore_errors=True)


class Collector:
    """For prometheus_client."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with contextlib.suppress(OSError), open(os.path.join(self.folder, ASKED), "w"):
            pass
        for family in families(reports(self.folder)):
            kind = CounterMetricFamily if family.counter else GaugeMetricFamily
            metric = kind(family.name, family.text, labels=family.labels)
            for labels, value in family.values:
                metric.add_metric(labels, value)
            yield metric

    def describe(self) -> Iterable[Any]:
        return ()  # nothing is read when it is registered


def reports(folder: str) -> list[dict[str, Any]]:
    """What the processes last wrote."""
    found = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for name in names:
        if not name.endswith(".json"):
            continue
        try:
            with open(os.path.join(folder, name), "rb") as f:
                found.append(json.loads(f.read(MOST_BYTES)))
        except (OSError, ValueError):
            continue
    return found


LIBRARY = (  # metric, what it counts, its label, and the library's counts by the label's value
    ("rows", "Query tokens of steps that lessismore attended to: sparse if they saw more tokens than the budget", "kind",
     {"sparse": "rows_sparse", "full": "rows_full"}),
    ("layer_tokens", "Tokens of rows times layers: that they could see, and that they attended to", "kind",
     {"visible": "tokens_visible", "attended": "tokens_attended"}),
    ("layer_calls", "Layers of steps, by what they did; no_set: dense, because there was no token set to use", "kind",
     {"dense": "dense_calls", "select": "select_calls", "sparse": "sparse_calls", "no_set": "no_set_calls"}),
    ("audits", "Layers that the guard compared with full attention: all, and those that lost more than expected", "kind",
     {"all": "audits", "alarm": "alarms"}),
)  # fmt: skip


def families(found: list[dict[str, Any]]) -> list[Family]:
    """The metrics of some processes' reports."""
    active: list[tuple[tuple[str, ...], float]] = []
    memory: list[tuple[tuple[str, ...], float]] = []
    steps: list[tuple[tuple[str, ...], float]] = []
    declined: list[tuple[tuple[str, ...], float]] = []
    counted: dict[str, list[tuple[tuple[str, ...], float]]] = {name: [] for name, *_ in LIBRARY}
    for report in found:
        rank = str(report["rank"])
        active.append(((rank, report["reason"] or ""), float(report["reason"] is None)))
        memory.append(((rank,), report["work_bytes"]))
        for kind in ("decode", "split", "left"):
            steps.append(((rank, kind), report["counts"].get(f"{kind}_steps", 0)))
        declined += [((rank, reason), n) for reason, n in report["declined"].items()]
        for name, _, _, keys in LIBRARY:
            if report["library"] is not None:
                counted[name] += [((rank, kind), report["library"][key]) for kind, key in keys.items()]
    return [
        Family("lessismore_active", "1: decode rows are lessismore's; 0: all is vLLM's, for the reason", False, ("rank", "reason"), active),
        Family("lessismore_work_bytes", "Device memory for lessismore's work", False, ("rank",), memory),
        Family("lessismore_steps", "Steps by what is lessismore's: all rows, those that decode, none", True, ("rank", "kind"), steps),
        Family("lessismore_declined_rows", "Rows of steps that were left to vLLM", True, ("rank", "reason"), declined),
        *(Family(f"lessismore_{name}", text, True, ("rank", label), counted[name]) for name, text, label, _ in LIBRARY),
    ]  # fmt: skip


class Several:
    """A process's metrics in prometheus_client's folder, which adds up counters and takes the largest of gauges: each rank has one process."""

    def __init__(self, folder: str) -> None:
        from prometheus_client.mmap_dict import MmapedDict, mmap_key

        # Names of our own beside those that vLLM's metrics have in this process.
        self.key, me = mmap_key, f"lessismore{os.getpid()}"
        self.files = {
            counter: MmapedDict(os.path.join(folder, f"{kind}_{me}.db")) for counter, kind in ((True, "counter"), (False, "gauge_max"))
        }
        self.gauges: set[str] = set()

    def write(self, report: dict[str, Any]) -> None:
        gone, self.gauges = self.gauges, set()
        for family in families([report]):
            name = f"{family.name}_total" if family.counter else family.name
            for labels, value in family.values:
                key = self.key(family.name, name, list(family.labels), list(labels), family.text)
                self.files[family.counter].write_value(key, float(value), 0.0)
                if not family.counter:
                    self.gauges.add(key)
        for key in gone - self.gauges:  # a reason that is no longer the one
            self.files[False].write_value(key, 0.0, 0.0)


def _several() -> Optional[Several]:
    folder = os.environ.get(SEVERAL)
    if not folder:
        return None
    try:
        return Several(folder)
    except Exception as e:  # prometheus_client, as other versions have it
        logger.warning("lessismore: nothing in /metrics of several processes: %s", e)
        return None


class Reporter:
    """Writes what a process counted: now and then, and at its end."""

    def __init__(self, context: Any, rank: int, ranks: int, interval: float, stats: Optional[str], host: str = "vllm") -> None:
        """host: what the counts are called in the statistics file."""
        self.context, self.rank, self.interval, self.host = context, rank, interval, host
        folder = os.environ.get(VARIABLE)
        self.shown = None if not folder else os.path.join(folder, f"{os.getpid()}.json")
        if stats is not None:
            name = stats.replace("%p", str(os.getpid()))
            stats = name if ranks == 1 or name != stats else f"{stats}.{rank}"
        self.stats = stats
        self.several = _several()
        self.next = time.monotonic() + interval
        self.asked = 0  # when /metrics was last asked for, as far as it was answered

    def tick(self) -> None:
        """Once a step. Writes every `interval` seconds, if someone has asked or there is a file for it."""
        if not self.interval or time.monotonic() < self.next:
            return
        self.next = time.monotonic() + self.interval
        if self._asked() or self.stats is not None or self.several is not None:
            self.write()

    def _asked(self) -> bool:
        if self.shown is None:
            return False
        try:
            when = os.stat(os.path.join(os.path.dirname(self.shown), ASKED)).st_mtime_ns
        except OSError:
            return False
        new, self.asked = when != self.asked, when
        return new

    def write(self) -> None:
        try:
            report = {"rank": self.rank, **self.context.report()}
            if self.shown is not None and os.path.isdir(os.path.dirname(self.shown)):
                _files.write(self.shown, json.dumps(report).encode(), mine=True)
            if self.several is not None:
                self.several.write(report)
        except Exception as e:  # statistics are no reason to end a server
            logger.warning("lessismore: no statistics: %s", e)
            self.shown = self.stats = self.several = None
        if self.stats is None:
            return
        try:
            engine = self.context.engine
            library = {"version": __version__} if engine is None else engine.report()  # both begin alike: a file of ours
            _files.write(self.stats, json.dumps({**library, self.host: report}).encode())
        except Exception as e:
            logger.warning("lessismore: no statistics in a file: %s", e)
            self.stats = None
