"""An evaluation that is killed, and started again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np

from hierclip.evaluate import Outcomes, level_matrix
from tests.test_evaluate import BUDGET, PATHS, classifier, pictures

SLOW = """
import sys, time
from pathlib import Path
from hierclip.evaluate import level_matrix
from tests.test_evaluate import BUDGET, PATHS, classifier, pictures

model = classifier()
model.encoder.register_forward_hook(lambda *_: time.sleep(float(sys.argv[3])))
outcomes = level_matrix(model, pictures(0.15), PATHS, BUDGET, seed=0, batch=4, kept=Path(sys.argv[1]))
outcomes.save(Path(sys.argv[2]))
"""


def test_an_evaluation_that_was_killed_goes_on_and_gives_the_same(root, tmp_path):
    kept, out = tmp_path / "kept.npz", tmp_path / "out.npz"

    def start(pause: float) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", SLOW, str(kept), str(out), str(pause)], cwd=root)

    first, deadline = start(0.2), time.monotonic() + 60
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and kept.exists() and not out.exists()
    assert start(0.0).wait() == 0
    again, whole = Outcomes.load(out), level_matrix(classifier(), pictures(0.15), PATHS, BUDGET, seed=0, batch=4)
    assert all(np.array_equal(getattr(again, f.name), getattr(whole, f.name)) for f in fields(Outcomes))
