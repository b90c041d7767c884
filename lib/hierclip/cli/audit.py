"""How robust a model is, asked by somebody who has no project."""

from pathlib import Path
from typing import Annotated

import typer

from hierclip.cli.tree import Synsets, Widths, parse_widths

PROMPT = "the one that a model of this project was trained with, else a photo of a(n) {}"
Out = Annotated[Path, typer.Option(help="a folder for what comes out")]


def audit(
    model: Annotated[str, typer.Option(help="an architecture of open_clip, hf-hub:NAME, or the folder of a model")],
    images: Annotated[Path, typer.Option(help="a folder of pictures for each class, the folder named by the class")],
    pretrained: Annotated[str | None, typer.Option(help="a published tag, or a checkpoint file")] = None,
    tree: Annotated[list[str] | None, typer.Option(help="a tree's file, or wordnet; may be given again")] = None,
    synsets: Synsets = None,
    widths: Widths = None,
    eps: Annotated[str, typer.Option(help="budget: n/255, or a share of 1")] = "1/255",
    suite: Annotated[str, typer.Option(help="standard, quick, or attacks with commas between them")] = "standard",
    norm: Annotated[str, typer.Option(help="Linf or L2")] = "Linf",
    steps: Annotated[int | None, typer.Option(min=1, show_default="the suite's", help="of a gradient attack")] = None,
    queries: Annotated[int | None, typer.Option(min=1, show_default="the suite's", help="of Square")] = None,
    restarts: Annotated[int, typer.Option(min=1, help="random starts")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="pictures at a time")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="pictures of a class", show_default="all")] = None,
    checks: Annotated[int, typer.Option(min=1, help="pictures that the attack itself is checked on")] = 20,
    template: Annotated[str | None, typer.Option(help="a prompt, {} for the name", show_default=PROMPT)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 0,
    out: Out = Path("hierclip-audit"),
) -> None:
    """Measure how robust a CLIP model is at every level of a class tree over your own pictures.

    Prints a table, and writes to --out: the record (JSON), the outcome of every picture, figures (PNG and PDF) and a
    page, report.html. The tree: a file (an outline in YAML or JSON, a CSV of paths), or WordNet's. Without --tree it is
    WordNet's if every class folder is a WordNet id, a synset (dog.n.01) or a name of one sense there, else there are no
    levels but the leaves; `hierclip tree` shows it beforehand. The suite "standard" is APGD-CE, targeted APGD-DLR and
    Square, 100 steps and 5000 queries: it wants a GPU. "quick" is two APGDs of 8 steps.

    A run that was stopped goes on where it was. Exit code: 0; 1 where a check of the attack failed, so that the model
    is weaker than the table says; 2 where something given is not right.

    \b
    Examples:
      hierclip audit --model ViT-B-32 --pretrained openai --images my-images
      hierclip audit --model ViT-B-32 --pretrained weights.safetensors --images my-images --tree zoo.yaml --eps 4/255
      hierclip audit --model ViT-B-32 --pretrained openai --images imagenet/val --tree wordnet --limit 5 --suite quick
      hierclip audit --model data/models/hier-0 --images my-images --tree zoo.yaml --tree wordnet --synsets which.yaml
    """
    given = {key: value for key, value in locals().items() if key not in ("tree", "widths")}
    from hierclip.audits import audit as run

    found = run(tree=tree or (), widths=parse_widths(widths), say=lambda line: typer.echo(line, err=True), **given)
    typer.echo(found.table)
    typer.echo(f"{found.folder / 'report.html'}: all of it, with figures")
    if found.record.audit.failed:
        raise typer.Exit(1)
