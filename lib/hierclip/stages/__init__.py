"""What a stage of the pipeline does with the project's folder, in this process or in several."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

BASE, MODELS, TREES = "data/models/base", "data/models", "data/trees"
ZERO_SHOT = "data/zero_shot"  # pictures and trees of the sets that no stage trains on
HISTORY = "history.csv"  # beside a model's weights


def keep_history(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Writes what each step of a training logged."""
    frame = pd.DataFrame(history, columns=None if history else ["loss"], dtype=float)
    frame.round(6).to_csv(folder / HISTORY, index=False)


def read_history(folder: Path) -> pd.DataFrame:
    """What `keep_history` wrote."""
    return pd.read_csv(folder / HISTORY).astype(float)
