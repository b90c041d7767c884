"""Kill the long works at random moments: `python -m benchmarks.kills [TIMES]`, 100 by default.

Pre-training, fine-tuning, an evaluation and an audit, of small models, take turns. Each is killed
with all its processes (SIGKILL) at a random moment, started again, and what it leaves is compared,
file by file and byte by byte, with what an undisturbed one left. Three quarters of the moments lie
between the first kept file and the end, the others anywhere. Prints a line for each, and the count;
exit code 1 where something differs. Some 60 minutes on two cores.
"""

import hashlib
import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = {  # of the preset smoke, but for what makes there be something to resume
    "methods": ["tecoa", "forest"],
    "pretrain": {"steps": 60, "batch": 32, "checkpoint_every": 3},
    "finetune": {"steps": 30, "batch": 16, "checkpoint_every": 2},
}
AUDIT = "--suite apgd_ce,apgd_margin --steps 3 --checks 4 --queries 20"
WORKS = {  # a command, and what it leaves
    "pretrain": ("run 30_pretrain", ["data/models/base"]),
    "finetune": ("run 40_finetune -p method=forest", ["data/models/forest-0"]),
    "attack": ("run 50_attack -p method=tecoa", ["data/attacks", "data/results"]),
    "audit": (f"audit --model data/models/tecoa-0 --images images {AUDIT} --out out", ["out"]),
}


def make_project(folder: Path) -> Path:
    """Make a project with data, trees, a base, a fine-tuned model and class folders of images."""
    for name in ("lib", "notebooks", "data/source"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "presets/smoke/params.yaml").read_text(encoding="utf8"))
    for section, entries in SMALL.items():
        params[section] = params[section] | entries if isinstance(entries, dict) else entries
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf8")
    for notebook in ("10_data", "20_trees", "30_pretrain", "40_finetune -p method=tecoa"):
        finish(folder, f"run {notebook}")

    from hierclip.config import load_params
    from hierclip.data import load_dataset

    dataset = load_dataset(load_params(folder / "params.yaml").data, folder)
    images = dataset.images("test")
    some = images[images.evenly_spaced(20)]
    for k, (pixels, label) in enumerate(zip(some.read(), some.labels, strict=True)):
        file = folder / f"images/{dataset.leaves[label].id}/{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    return folder


def start(folder: Path, command: str) -> psutil.Popen:
    """Start a command of `hierclip` in a project's folder."""
    python = [sys.executable, "-m", "hierclip", *command.split()]
    single = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        return psutil.Popen(python, cwd=folder, env=single, stdout=log, stderr=log)


def kept(folder: Path) -> list[str]:
    """Return the names of the files from which an unfinished work would go on."""
    places = [*(folder / "data/checkpoints").rglob("*"), *(folder / "out").rglob("*")]
    files = [file for file in places if file.is_file() and file.suffix != ".lock"]
    return sorted(file.name for file in files if ".part" not in "".join(file.suffixes))


def finish(folder: Path, command: str) -> tuple[float, float]:
    """Run a command to its end; return the seconds to its first kept file, and to its end.

    Raises RuntimeError if it fails.
    """
    began, process, first = time.monotonic(), start(folder, command), None
    while process.poll() is None:
        time.sleep(0.1)
        if first is None and kept(folder):
            first = time.monotonic() - began
    if process.returncode not in (0, 1):  # 1: a check of an audit's attack failed
        raise RuntimeError(f"{command}: {(folder / 'log').read_text(encoding='utf8')[-3000:]}")
    return first or 0.0, time.monotonic() - began


def kill(process: psutil.Popen) -> None:
    """Kill a process and all that it started, at once."""
    family = [process, *process.children(recursive=True)]
    for each in family:
        each.suspend()
    for each in family:
        each.kill()
    psutil.wait_procs(family)


def hashes(folder: Path, left: list[str]) -> dict[str, str]:
    """Return the SHA-256 of every file that a work left, by path."""
    files = [file for name in left for file in (folder / name).rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
    }


def copy_before(project: Path, folder: Path, left: list[str]) -> Path:
    """Copy a project without what a work leaves; return the copy."""
    shutil.copytree(project, folder, symlinks=True)
    for name in left:
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def trial(project: Path, work: str, seconds: float) -> tuple[list[str], dict[str, str]]:
    """Kill a work in a copy of a project after some seconds, and start it again.

    Return what was kept of it when it was killed, and the hashes of what it left in the end.
    """
    command, left = WORKS[work]
    with TemporaryDirectory() as temporary:
        folder = copy_before(project, Path(temporary, "project"), left)
        process = start(folder, command)
        time.sleep(seconds)
        kill(process)
        before = kept(folder)
        finish(folder, command)
        return before, hashes(folder, left)


def main(times: int = 100) -> None:
    """Kill the works in turn, two projects at a time."""
    draw = random.Random(0)
    with TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as workers:
        project = make_project(Path(temporary, "project"))
        moments, expected = {}, {}
        for work, (command, left) in WORKS.items():
            folder = copy_before(project, Path(temporary, work), left)
            first, end = moments[work] = finish(folder, command)
            if not first:
                raise RuntimeError(f"{command}: it kept nothing to go on from")
            expected[work] = hashes(folder, left)
            print(
                f"{work}: first kept file after {first:.1f} s, end after {end:.1f} s, "
                f"{len(expected[work])} files",
                flush=True,
            )
        works = [list(WORKS)[k % len(WORKS)] for k in range(times)]
        seconds = []
        for work in works:
            first, end = moments[work]
            seconds.append(draw.uniform(0 if draw.random() < 0.25 else first, end))
        trials = workers.map(trial, [project] * times, works, seconds)
        same = 0
        for k, (work, after, (before, found)) in enumerate(
            zip(works, seconds, trials, strict=True)
        ):
            odd = [n for n in expected[work] | found if expected[work].get(n) != found.get(n)]
            same += not odd
            verdict = f"DIFFERENT: {', '.join(odd)}" if odd else "identical"
            print(
                f"{k + 1} {work} killed at {after:.1f} s with {len(before)} kept files: {verdict}",
                flush=True,
            )
    print(f"{same} of {times} identical to the undisturbed one")
    raise SystemExit(same < times)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
