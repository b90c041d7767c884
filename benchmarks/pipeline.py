"""What the pipeline's stages took here, how long commands take to start, and what memory an audit
takes.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.measure import Row, exponent, in_process, interleaved
from hierclip.config import find_root

TIMES = "data/times"  # where hierclip.notebook keeps what each notebook took
START_ROUNDS = 5
AUDITED = (500, 1000, 2000)  # images
PIXELS, CLASSES = 224, ("cat", "dog", "horse", "cow", "car", "bus", "train", "ship", "oak", "fern")
TREE = {"animal": list(CLASSES[:4]), "vehicle": list(CLASSES[4:8]), "plant": list(CLASSES[8:])}
# A tower small enough that an audit's memory is that of its images, not of the model.
TOWER = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": PIXELS,
        "layers": 1,
        "width": 32,
        "patch_size": 32,
        "head_width": 32,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
AUDIT = """
import json, sys
from time import perf_counter

import torch

from benchmarks.measure import peak_memory
from hierclip import audit, models
from hierclip.evaluation import masking as _  # so that what is imported does not count

torch.set_num_threads(1)
folder, count, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
before, start = peak_memory(), perf_counter()
settings = {"steps": 1, "suite": "pgd_ce", "batch": 32, "checks": 8, "queries": 30}
settings |= {"images": f"{folder}/images", "tree": f"{folder}/tree.json"}
audit(f"{folder}/model", limit=count // classes, out=f"{folder}/out-{count}", **settings)
print(json.dumps({"memory": peak_memory() - before, "seconds": perf_counter() - start}))
"""


def stages() -> list[Row]:
    """Show what the stages of the pipeline took here the last time that each was run."""
    rows = []
    files = sorted((find_root() / TIMES).glob("*.json"))
    spent = {file.stem: json.loads(file.read_text(encoding="utf8")) for file in files}
    if not spent:
        return [Row("stage", "none was run here: make repro", None, float("nan"), "s")]
    total = sum(each["wall"] for each in spent.values())
    for name, seconds in spent.items():
        share = f"{seconds['wall'] / total:.0%} of all"
        note = f"user {seconds['user']:.1f} s, system {seconds['system']:.1f} s, {share}"
        rows.append(Row("stage", name, None, seconds["wall"], "s", note=note))
    rows.append(Row("stage", f"all of these {len(spent)}", None, total, "s"))
    return rows


def start_up() -> list[Row]:
    """Time what a user waits for before anything happens."""
    command = Path(sys.executable).with_name("hierclip")
    starts = {
        "hierclip --help": [str(command), "--help"],
        "import hierclip": [sys.executable, "-c", "import hierclip"],
        "from hierclip import audit": [sys.executable, "-c", "from hierclip import audit"],
    }
    ways = {
        name: partial(subprocess.run, words, check=True, capture_output=True)
        for name, words in starts.items()
    }
    times = interleaved(ways, START_ROUNDS)
    limits = {"hierclip --help": 0.3, "import hierclip": 0.3}
    return [Row("start", name, None, median(times[name]), "s", limits.get(name)) for name in ways]


def audit_memory() -> list[Row]:
    """Measure the peak memory, beyond that of imports, and the time of audits of more and more
    images of 224 px.
    """
    with TemporaryDirectory() as folder:
        write_audit_input(Path(folder))
        found = [in_process(AUDIT, folder, count, len(CLASSES)) for count in AUDITED]
    memory = [each["memory"] for each in found]
    note = ", ".join(
        f"{count}: {value:.0f} MiB" for count, value in zip(AUDITED, memory, strict=True)
    )
    growth = exponent(AUDITED, [each["seconds"] for each in found])
    return [
        Row(
            "audit",
            "peak memory, 2,000 / 500 images",
            1,
            memory[-1] / memory[0],
            at_most=1.25,
            note=note,
        ),
        Row("growth", "images of an audit: memory", 1, exponent(AUDITED, memory), "", 1.1),
        Row("growth", "images of an audit: time", 1, growth, "", 1.1),
    ]


def write_audit_input(folder: Path) -> None:
    """Write a model with random weights, a tree, and as many images as the largest audit takes."""
    (folder / "tree.json").write_text(json.dumps(TREE), encoding="utf8")
    (folder / "benchmark-tower.json").write_text(json.dumps(TOWER), encoding="utf8")
    make_model = (
        "import sys; from pathlib import Path; import open_clip;"
        "from hierclip.models import open_backbone, save;"
        "folder = Path(sys.argv[1]); open_clip.add_model_config(folder / 'benchmark-tower.json');"
        "save(open_backbone('benchmark-tower', None), folder / 'model'); print('{}')"
    )
    in_process(make_model, folder)
    random = np.random.default_rng(0)
    for name in CLASSES:
        place = folder / "images" / name
        place.mkdir(parents=True)
        for k in range(AUDITED[-1] // len(CLASSES)):
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((PIXELS, PIXELS)).save(place / f"{k}.jpg")
