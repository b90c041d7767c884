"""Measure everything, or the parts that are named, and print one table: `make bench`, or `python -m
benchmarks PART`.

A run of all parts writes benchmarks/results.json and results.md. Exit code 0 also where a goal is
missed: the table says so.
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
from hierclip.config import find_root
from hierclip.evaluation.records import git_revision, hardware, versions

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


COLUMNS = ("part", "what", "threads", "figure", "goal", "", "note")
WIDTHS = (9, 52, 8, 10, 8, 7, 0)


def cells(row: Row) -> tuple[str, ...]:
    """Give a row's COLUMNS as words."""
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    figure = f"{row.value:.3g} {row.unit}".rstrip()
    return row.part, row.what, str(row.threads or ""), figure, row.goal, verdict, row.note


def format_line(words: Sequence[str]) -> str:
    """Lay the words of COLUMNS out on a line."""
    return " ".join(f"{word:<{width}}" for word, width in zip(words, WIDTHS, strict=True)).rstrip()


def markdown(rows: Sequence[Row], head: str) -> str:
    """Make a page of the rows. head: what was measured on."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Benchmarks\n\nMade by `make bench`, not by hand. {head}\n\n{table}\n"


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
    """Run the parts one after the other, say how far it is, print each part's rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument(
        "--out", type=Path, help="a JSON file; a run of all parts writes benchmarks/results.json"
    )
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; known are {', '.join(PARTS)}")
    rows, start = [], perf_counter()
    print(format_line(COLUMNS), flush=True)
    for name in chosen.parts or PARTS:
        print(f"{perf_counter() - start:5.0f} s  measuring {name}", file=sys.stderr, flush=True)
        made = PARTS[name]()
        # At once: what is measured is not lost where a later part fails.
        print("\n".join(format_line(cells(row)) for row in made), flush=True)
        rows += made
    seconds = perf_counter() - start
    machine = f"{hardware('cpu')}, torch {torch.__version__}"
    head = f"{machine}. Ratios: medians of interleaved rounds. {seconds:.0f} s in all."
    print(head)
    path = chosen.out or (None if chosen.parts else RESULTS)
    if path:
        write_results(rows, seconds, path)
        path.with_suffix(".md").write_text(markdown(rows, head), encoding="utf8")


if __name__ == "__main__":
    main()
