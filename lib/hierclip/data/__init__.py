"""Image datasets behind one small interface. `DATASETS` names them; `load_dataset` opens one."""

from collections.abc import Callable
from pathlib import Path

from hierclip.config import DataParams
from hierclip.data.dataset import (
    CONTENT as CONTENT,
    MADE as MADE,
    SPLITS as SPLITS,
    DataError as DataError,
    Dataset as Dataset,
    ImageSet as ImageSet,
    Leaf as Leaf,
    PreparedDataset as PreparedDataset,
    StoredImages as StoredImages,
    class_indices as class_indices,
    ids_of as ids_of,
    step_seed as step_seed,
)
from hierclip.data.emoji import (
    Emoji as Emoji,
)
from hierclip.data.photos import (
    Cut as Cut,
    Photos as Photos,
    square as square,
    write_images as write_images,
)
from hierclip.data.sources import (
    SETS as SETS,
    Source as Source,
    by_class as by_class,
    class_folders as class_folders,
    class_name as class_name,
    dataset_source as dataset_source,
    shards_source as shards_source,
)

PREPARED = "data/prepared"
DATASETS: dict[str, Callable[..., PreparedDataset]] = {
    "emoji": Emoji,
    **dict.fromkeys(SETS, Photos),
}


def load_dataset(
    params: DataParams, root: Path, prepared: Path | str | None = None
) -> PreparedDataset:
    """Open the dataset that `params.name` names: one of DATASETS, or a user's own by its layout.

    prepared: the project's file in which notebook 10 keeps the images, by default its name's.
    Raises DataError, which lists the known names, for another name.
    """
    if params.name not in DATASETS and getattr(params, "layout", "published") == "published":
        raise DataError(
            f"no dataset {params.name!r}; known are {', '.join(DATASETS)}; "
            "data.layout: folder takes one of your own"
        )
    file = root / (prepared or f"{PREPARED}/{params.name}.safetensors")
    return DATASETS.get(params.name, Photos)(params, root, file)
