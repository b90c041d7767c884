"""Export a fine-tuned model for open_clip."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from hierclip.errors import HierclipError, no_such

HEAD_WORDS = {  # what open_clip, which takes the text of the largest cosine, makes of a model
    "cosine": "The model is read by cosine, as open_clip does: it predicts there what it does "
    "here.",
    "fixed": "The model is read by distance {space}, every text of a level at one radius: the "
    "nearest text is the one of the largest cosine, so open_clip predicts the same; its "
    "confidences are others.",
    "free": "The model is read by distance {space}, where the norms of embeddings count. Plain "
    "open_clip compares directions alone (cosine) and may predict otherwise. As trained it is read "
    "by hierclip.models.load_model, and by hierclip audit --model FOLDER.",
}


LOADING = """\
import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{place}")
tokenizer = open_clip.get_tokenizer("local-dir:{place}")"""
CARD = """\
---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, adversarial-robustness, class-hierarchy]
---
# {name}

A CLIP-style model that hierclip fine-tuned for robustness against small perturbations of images.

```python
{loading}  # FOLDER: where this file is
```

{reading}

## Robustness

{robustness}

## How it was made

The settings of the project when the model was exported. The licence of the weights follows from
the model and the images there; hierclip's code is MIT.

```yaml
{settings}```
"""


def export(
    name: Annotated[
        str,
        typer.Argument(metavar="METHOD-SEED", help="a model of the project, or a model's folder"),
    ],
    folder: Annotated[Path, typer.Argument(help="where the copy goes")],
) -> None:
    """Write a fine-tuned model in open_clip's own layout; say how open_clip loads and reads it.

    Beside it go a model card, README.md (its data, training and results), and its records.

    \b
    Examples:
      hierclip export hier-0 my-clip
      hierclip export data/models/tecoa-0 my-clip
    """
    from hierclip.config import find_root
    from hierclip.data.tasks import MODELS
    from hierclip.models import load_model, save_model
    from hierclip.models.classifier import HEAD

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise HierclipError(f"{folder} is a file, or not empty; name a folder that is new")
    source = Path(name)
    if not (source / HEAD).exists():
        source = find_root() / MODELS / name
    if not (source / HEAD).exists():
        known = sorted(file.parent.name for file in source.parent.glob(f"*/{HEAD}"))
        raise HierclipError(
            f"{source.parent}: {no_such('model', name, known)}; a project's `hierclip run "
            "40_finetune` makes one"
        )
    model, words = load_model(source), LOADING.format(place=folder.resolve())
    reading = head_words(model.head)
    card, records = model_card(source.resolve(), reading)
    save_model(model, folder)
    (folder / "README.md").write_text(card, encoding="utf8")
    for file in records:
        (folder / "records").mkdir(exist_ok=True)
        shutil.copy(file, folder / "records")
    typer.echo(f"{words}\n\n{reading}")


def model_card(source: Path, reading: str) -> tuple[str, list[Path]]:
    """Write the card of a model in `source`; return it with the files of the model's records.

    Of a folder that is no PROJECT/data/models/METHOD-SEED nothing else is known.
    """
    import yaml

    from hierclip.evaluation.records import RECORDS, parse_record

    files, settings = [], {}
    root = source.parents[min(2, len(source.parents) - 1)]
    if source.parent == root / "data/models" and (root / "params.yaml").exists():
        files = sorted((root / RECORDS / source.name).glob("*.json"))
        params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf8")) or {}
        parts = {key: params.get(key) for key in ("model", "data", "pretrain", "finetune")}
        parts["method"] = params.get("method", {}).get(source.name.rpartition("-")[0])
        settings = {key: part for key, part in parts.items() if part}
    records = [parse_record(file.read_text(encoding="utf8"), str(file)) for file in files]
    card = CARD.format(
        name=source.name,
        loading=LOADING.format(place="FOLDER"),
        reading=reading,
        robustness=robustness_words(records),
        settings=yaml.safe_dump(settings, sort_keys=False) if settings else "unknown\n",
    )
    return card, files


def robustness_words(records) -> str:
    """Tabulate what a model's records say."""
    if not records:
        return "Not measured yet; `hierclip audit` measures it."
    import pandas as pd

    from hierclip.plots.words import READING, attack_words, audit_words, pipes, share

    rows = []
    for record in records:
        bounds, row = record.intervals, {"classes": record.subset, "images": record.images}
        row["clean leaf"] = share(record.clean["direct"][0], bounds["direct"].clean[0])
        row["robust leaf"] = share(record.robust["direct"][0][0], bounds["direct"].robust[0][0])
        for each, name in READING.items():
            row[f"path-robust, {name}"] = share(record.path_robust[each], bounds[each].path_robust)
        rows.append(row)
    threat, label = records[0].threat_model, {records[0].method: records[0].method}
    return (
        f"{pipes(pd.DataFrame(rows))}\n\nPercent, with 95 % bootstrap intervals over images. "
        f"{attack_words(threat)}; {threat.resolution} px, {threat.precision}, prompt "
        f'"{threat.prompt}".\n\n{audit_words(records, label)}'
    )


def head_words(head) -> str:
    """Say whether plain open_clip predicts what the model does when it is read by `head`."""
    from hierclip.models import CosineHead, EuclideanHead

    norms = "cosine" if isinstance(head, CosineHead) else head.norms
    space = "in flat space" if isinstance(head, EuclideanHead) else "in the Poincare ball"
    return HEAD_WORDS[norms].format(space=space)
