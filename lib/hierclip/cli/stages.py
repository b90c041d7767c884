"""Stages of a project's pipeline, without their notebooks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hierclip.errors import HierclipError

if TYPE_CHECKING:  # reading parameters takes longer than all the rest of `hierclip --help`
    from hierclip.params import Params

MethodName = Annotated[str, typer.Argument(help="an entry of `method` in params.yaml")]
SeedNumber = Annotated[int, typer.Argument(min=0)]


def pretrain() -> None:
    """Make the base model, as the pipeline's stage does; for torchrun too.

    \b
    Example:
      hierclip pretrain
    """
    from hierclip.params import FILE, find_root, load_params
    from hierclip.stages.pretrain import pretrain_stage

    pretrain_stage(root := find_root(), load_params(root / FILE))


def finetune(method: MethodName, seed: SeedNumber = 0) -> None:
    """Fine-tune the base model by one method, as the pipeline's stage does; for torchrun too.

    Pictures, trees and the base model are made first where they are missing. A run that was stopped goes on where it
    was. The model goes to data/models/METHOD-SEED of the project, or of the preset whose folder this is.

    \b
    Examples:
      hierclip finetune tecoa
      hierclip finetune hier 1
    """
    from hierclip.distributed import rank
    from hierclip.stages import MODELS
    from hierclip.stages.finetune import finetune_stage
    from hierclip.stages.ready import make_ready

    root, params = _project(method)
    make_ready(root, params, typer.echo)
    finetune_stage(root, params, method, seed)
    if rank() == 0:
        name = f"{method}-{seed}"
        typer.echo(f"the model: {root / MODELS / name}")
        typer.echo(f"next: hierclip attack {method} {seed}, or hierclip export {name} FOLDER for open_clip")


def attack(method: MethodName, seed: SeedNumber = 0) -> None:
    """Attack a fine-tuned model at every level, as the pipeline's stage does; for torchrun too.

    The records go to data/results/records/METHOD-SEED. A run that was stopped goes on where it was.

    \b
    Example:
      hierclip attack tecoa
    """
    from hierclip.distributed import rank
    from hierclip.evaluate import RECORDS
    from hierclip.stages.attack import attack_stage

    root, params = _project(method)
    for record in attack_stage(root, params, method, seed):
        if rank() == 0:
            typer.echo(f"the record: {root / RECORDS / record.name}.json")


def _project(method: str) -> "tuple[Path, Params]":
    from hierclip.params import FILE, find_root, load_params

    root = find_root()
    params = load_params(root / FILE)
    if method not in params.method:
        raise HierclipError(f"no method {method!r}; known are {', '.join(params.method)}")
    return root, params
