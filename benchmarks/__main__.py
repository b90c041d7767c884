"""Measure everything, or the parts that are named, and print one table: `make bench`, or `python -m benchmarks PART`.

A run of all parts writes benchmarks/results.json. Exit code 0 also where a goal is missed: the table says so.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch

from benchmarks import attacks, growth, hyperbolic, pipeline, training
from benchmarks.measure import Row
from hierclip.evaluate.records import git_revision, hardware, versions
from hierclip.params import find_root

RESULTS = Path(__file__).with_name("results.json")
PARTS: dict[str, Callable[[], list[Row]]] = {
    "start": pipeline.start_up,
    "distance": hyperbolic.distances,
    "step": training.steps,
    "pgd-10": attacks.pgd,
    "matrix": attacks.matrix,
    "suite": attacks.suite,
    "audit": pipeline.audit_memory,
    "growth": growth.growth,
    "stage": pipeline.stages,
}


def format_row(row: Row) -> str:
    """Lay a row out: what was measured, on how many threads, the figure, its goal, whether that is met, a note."""
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    figure = f"{row.value:.3g}{' ' if row.unit else ''}{row.unit}"
    count = "" if row.threads is None else str(row.threads)
    line = f"{row.part:<9}{row.what:<52}{count:>3}  {figure:>9}  {row.goal:<8}{verdict:<8}{row.note}"
    return line.rstrip()


def write_results(rows: Sequence[Row], seconds: float, path: Path) -> None:
    """Write the rows as JSON, with the machine that they were measured on."""
    result = {
        "hardware": hardware("cpu"),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_revision(find_root()),
        "versions": versions(),
        "seconds": round(seconds),
        "rows": [asdict(row) | {"goal": row.goal, "met": row.met} for row in rows],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts one after the other, say how far it is, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, help="a JSON file; a run of all parts writes benchmarks/results.json")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; known are {', '.join(PARTS)}")
    rows, start = [], perf_counter()
    for name in chosen.parts or PARTS:
        print(f"{perf_counter() - start:5.0f} s  measuring {name}", file=sys.stderr, flush=True)
        rows += PARTS[name]()
    seconds = perf_counter() - start
    print(f"{hardware('cpu')}, torch {torch.__version__}; ratios are medians of interleaved runs; {seconds:.0f} s\n")
    print("\n".join([f"{'part':<9}{'what':<52}{'thr':>3}  {'figure':>9}  {'goal':<8}", *map(format_row, rows)]))
    path = chosen.out or (None if chosen.parts else RESULTS)
    if path:
        write_results(rows, seconds, path)


if __name__ == "__main__":
    main()
