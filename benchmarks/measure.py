"""Measure so that machines and moments can be compared: ways in turn, ratios within a round,
medians over rounds.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

Times = dict[str, list[float]]  # by way: seconds, a value for each round


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure, and the limit that is its goal, if it has one."""

    part: str
    what: str
    threads: int | None
    value: float
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    @property
    def met(self) -> bool | None:
        """Whether the figure keeps its goal; None where it has none. A figure that is no number
        keeps none.
        """
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> list[int]:
    """Return one thread, and as many as torch takes by itself."""
    return sorted({1, torch.get_num_threads()})


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Times:
    """Time every way once a round, each round beginning with another one; warm-up rounds are not
    counted.
    """
    names = list(ways)
    times: Times = {name: [] for name in names}
    for count in range(warm_up + rounds):
        first = count % len(names)
        for name in names[first:] + names[:first]:
            start = perf_counter()
            ways[name]()
            if count >= warm_up:
                times[name].append(perf_counter() - start)
    return times


def ratio(times: Times, way: str, to: str) -> float:
    """Return the median over rounds of one way's time in units of another's in the same round."""
    return median(a / b for a, b in zip(times[way], times[to], strict=True))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit p in cost = c * size^p: the slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def peak_memory() -> float:
    """Return the largest resident memory that this process has had, in MiB.

    On Linux that is VmHWM: ru_maxrss begins with the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf8").splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS, in bytes


def in_process(code: str, *arguments: object) -> dict:
    """Run Python code in a process of its own; give the JSON object on its last line.

    A process of its own is how a peak of memory is measured. Memory is allocated as in any Python
    process, not as `make` asks for. Raises RuntimeError where it fails.
    """
    command = [sys.executable, "-c", code, *map(str, arguments)]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, encoding="utf8", env=plain)
    if done.returncode:
        raise RuntimeError(f"a measured process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
