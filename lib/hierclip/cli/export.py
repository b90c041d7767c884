"""A fine-tuned model for open_clip."""

from pathlib import Path
from typing import Annotated

import typer

from hierclip.errors import HierclipError


def export(
    name: Annotated[
        str,
        typer.Argument(metavar="METHOD-SEED", help="a model of the project, or a model's folder"),
    ],
    folder: Annotated[Path, typer.Argument(help="where the copy goes")],
) -> None:
    """Write a fine-tuned model in open_clip's own layout, and say how plain open_clip loads it and
    what it then does.

    \b
    Examples:
      hierclip export hier-0 my-clip
      hierclip export data/models/tecoa-0 my-clip
    """
    from hierclip.model import load_model, save_model

    if folder.is_file():
        raise HierclipError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise HierclipError(f"{folder} is not empty; name a folder that is new")
    model = load_model(find_model(name))
    save_model(model, folder)
    place = f'"local-dir:{folder.resolve()}"'
    typer.echo("import open_clip")
    typer.echo(f"model, _, preprocess = open_clip.create_model_and_transforms({place})")
    typer.echo(f"tokenizer = open_clip.get_tokenizer({place})")
    typer.echo(f"\n{head_words(model.head)}")


def find_model(name: str) -> Path:
    """A model's folder, by itself or by its name in the project. Raises HierclipError, listing the
    known ones.
    """
    from hierclip.data.tasks import MODELS
    from hierclip.model.classifier import HEAD
    from hierclip.params import find_root

    if (Path(name) / HEAD).exists():
        return Path(name)
    models = find_root() / MODELS
    known = sorted(file.parent.name for file in models.glob(f"*/{HEAD}"))
    if name not in known:
        raise HierclipError(
            f"no model {name!r} in {models}; "
            f"known are {', '.join(known) or 'none: hierclip run 40_finetune'}"
        )
    return models / name


def head_words(head) -> str:
    """What plain open_clip, which takes the text of the largest cosine, makes of a model that is
    read by `head`.
    """
    from hierclip.model import CosineHead, EuclideanHead

    here = (
        "As trained it is read by hierclip.model.load_model, and by hierclip audit --model FOLDER."
    )
    if isinstance(head, CosineHead):
        return (
            "The model is read by cosine, as open_clip does: it predicts there what it does here."
        )
    space = "in flat space" if isinstance(head, EuclideanHead) else "in the Poincare ball"
    if head.norms == "fixed":
        return (
            f"The model is read by distance {space}, every text of a level at one radius: "
            f"the nearest text is the one "
            "of the largest cosine, so open_clip predicts the same; its confidences are others."
        )
    return (
        f"The model is read by distance {space}, where the norms of embeddings count. "
        f"Plain open_clip compares "
        f"directions alone (cosine) and may predict otherwise. {here}"
    )
