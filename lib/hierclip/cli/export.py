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


CARD = """\
---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, adversarial-robustness, class-hierarchy]
---
# {name}

A CLIP-style model that hierclip fine-tuned for robustness against small perturbations of images.

```python
{loading}
```

{reading}

## Robustness

{robustness}

## How it was made

The licence of the weights follows from the model and the images below. hierclip's code is MIT.

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
    model = load_model(source)
    save_model(model, folder)
    place = f'"local-dir:{folder.resolve()}"'
    loading = (
        f"import open_clip\n"
        f"model, _, preprocess = open_clip.create_model_and_transforms({place})\n"
        f"tokenizer = open_clip.get_tokenizer({place})"
    )
    card = model_card(source, loading, head_words(model.head))
    (folder / "README.md").write_text(card, encoding="utf8")
    records = source.resolve().parents[1] / "results/records" / source.name
    if records.exists():
        shutil.copytree(records, folder / "records")
    typer.echo(f"{loading}\n\n{head_words(model.head)}")


def model_card(source: Path, loading: str, reading: str) -> str:
    """Write the card of a model in `source`, DATA/models/METHOD-SEED of a project or any folder.

    Its results are its lines of the project's table.
    """
    import yaml

    root, (method, _, seed) = source.resolve().parents[2], source.name.rpartition("-")
    texts = [root / name for name in ("params.yaml", "data/results/table.md")]
    params, table = (file.read_text(encoding="utf8") if file.exists() else "" for file in texts)
    sections = yaml.safe_load(params) or {}
    settings = {key: sections.get(key) for key in ("model", "data", "pretrain", "finetune")}
    settings["method"] = sections.get("method", {}).get(method)
    label = (settings["method"] or {}).get("label", method)
    kept = ("| method |", "|-", f"| {label} | {seed} |")
    lines = [each for each in table.splitlines() if each[:1] != "|" or each.startswith(kept)]
    return CARD.format(
        name=source.name,
        loading=loading,
        reading=reading,
        robustness="\n".join(lines) or "Not measured yet; `hierclip audit` measures it.",
        settings=yaml.safe_dump(settings, sort_keys=False),
    )


def head_words(head) -> str:
    """Say whether plain open_clip predicts what the model does when it is read by `head`."""
    from hierclip.models import CosineHead, EuclideanHead

    norms = "cosine" if isinstance(head, CosineHead) else head.norms
    space = "in flat space" if isinstance(head, EuclideanHead) else "in the Poincare ball"
    return HEAD_WORDS[norms].format(space=space)
