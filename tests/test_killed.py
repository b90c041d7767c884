"""An evaluation that is killed, and started again."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest

from hierclip.evaluation import Outcomes, load_records, outcomes_path
from tests.test_run import judged, knowing_model

SLOW = """
import pickle, sys, time
from pathlib import Path
from tests.test_run import judged, knowing_model

dataset, forest, params = pickle.loads(Path(sys.argv[1]).read_bytes())
model = knowing_model(dataset)
make = model.classifier

def slowed(trees, template):
    classifier = make(trees, template)
    classifier.encoder.register_forward_hook(lambda *_: time.sleep(float(sys.argv[3])))
    return classifier

model.classifier = slowed
judged(model, dataset, forest, "unseen", params, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("part", ["test", "levels"])
def test_an_evaluation_that_was_killed_goes_on_and_gives_the_same_record(
    part, emoji, emoji_forest, params, root, tmp_path
):
    inputs, again, whole = tmp_path / "inputs", tmp_path / "again", tmp_path / "whole"
    inputs.write_bytes(pickle.dumps((emoji, emoji_forest, params)))
    kept = again / f"data/checkpoints/attack-tecoa-3-unseen/{part}/direct-0.npz"

    def start(pause: float) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", SLOW, str(inputs), str(again), str(pause)], cwd=root
        )

    first, deadline = start(0.1), time.monotonic() + 120
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    assert (
        first.wait() == -signal.SIGKILL and kept.exists() and not (again / "data/results").exists()
    )
    assert start(0.0).wait() == 0
    assert not list((again / "data/checkpoints").iterdir())
    judged(knowing_model(emoji), emoji, emoji_forest, "unseen", params, whole)
    (made,), (expected,) = (
        load_records(folder / "data/results/records") for folder in (again, whole)
    )
    assert made.model_dump(exclude={"git"}) == expected.model_dump(exclude={"git"})
    for name in ("test", "forest", "levels"):
        a, b = (
            Outcomes.load(outcomes_path(folder, "tecoa", 3, "unseen", name))
            for folder in (again, whole)
        )
        assert all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Outcomes))
