"""Image datasets behind one small interface. `DATASETS` names them; `load_dataset` opens one."""

from collections.abc import Callable
from pathlib import Path

from hierclip.data.dataset import PARTS, SPLITS, Dataset, Leaf, Pictures, ids_of, places_of, step_seed
from hierclip.data.openmoji import OpenMoji
from hierclip.params import DataParams

DATASETS: dict[str, Callable[[DataParams, Path], Dataset]] = {"openmoji": OpenMoji}


def load_dataset(params: DataParams, root: Path) -> Dataset:
    """The dataset that `params.name` names. Raises ValueError, listing the known names, for another."""
    if params.name not in DATASETS:
        raise ValueError(f"no dataset {params.name!r}; known are {', '.join(DATASETS)}")
    return DATASETS[params.name](params, root)
