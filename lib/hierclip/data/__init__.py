"""Image datasets behind one small interface. `DATASETS` names them; `load_dataset` opens one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hierclip.data.dataset import PARTS, Dataset, Leaf, Pictures, ids_of, places_of, step_seed
from hierclip.data.openmoji import OpenMoji
from hierclip.data.photos import OWN, Photos, write_squares
from hierclip.data.published import PUBLISHED
from hierclip.data.sources import DataError, Source, by_class, class_folders, class_name
from hierclip.data.stored import StoredImages
from hierclip.params import DataParams

PREPARED = "data/prepared"
DATASETS: dict[str, Callable[[Any, Path, Path], Dataset]] = {
    "openmoji": OpenMoji,
    **dict.fromkeys([*OWN, *PUBLISHED], Photos),
}


def load_dataset(params: DataParams, root: Path, prepared: Path | str = PREPARED) -> Dataset:
    """The dataset that `params.name` names: one of DATASETS, or a folder of one's own where `params.layout` says so.

    prepared: the folder of the project in which `prepare` keeps its pictures.
    Raises DataError, listing the known names, for another.
    """
    if params.name not in DATASETS and getattr(params, "layout", "published") == "published":
        known = ", ".join(DATASETS)
        raise DataError(f"no dataset {params.name!r}; known are {known}; data.layout: folder takes one of your own")
    make: Callable[[Any, Path, Path], Dataset] = DATASETS.get(params.name, Photos)
    return make(params, root, root / prepared / f"{params.name}.safetensors")
