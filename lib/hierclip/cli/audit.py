"""How robust a model is, asked by somebody who has no project."""

from pathlib import Path
from typing import Annotated

import typer

from hierclip.cli.run import run_notebook
from hierclip.cli.tree import Synsets, Widths, parse_widths
from hierclip.errors import HierclipError

Channels = Annotated[
    str | None, typer.Option(help="of red, green, blue, such as 0,0,0", show_default="the model's")
]
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAGE = "report.html"


def audit(
    model: Annotated[
        str,
        typer.Option(help="an architecture of open_clip, hf-hub:NAME, or the folder of a model"),
    ],
    images: Annotated[
        Path, typer.Option(help="a folder of images for each class, the folder named by the class")
    ],
    pretrained: Annotated[
        str | None, typer.Option(help="a published tag, or a checkpoint file")
    ] = None,
    text_weights: Annotated[
        str | None,
        typer.Option(
            help="a tag or file, where a checkpoint holds the image tower alone",
            show_default="OpenAI's",
        ),
    ] = None,
    mean: Channels = None,
    std: Channels = None,
    resize_mode: Annotated[
        str | None, typer.Option(help="shortest, longest or squash", show_default="the model's")
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="bicubic or bilinear", show_default="the model's")
    ] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option("--quick-gelu/--no-quick-gelu", help="the activation of OpenAI's weights"),
    ] = None,
    try_quick_gelu: Annotated[
        bool, typer.Option("--try-quick-gelu", help="take what is right on more clean images")
    ] = False,
    tree: Annotated[
        list[str] | None, typer.Option(help="a tree's file, or wordnet; may be given again")
    ] = None,
    synsets: Synsets = None,
    widths: Widths = None,
    eps: Annotated[str, typer.Option(help="budget: n/255, or a share of 1")] = "1/255",
    suite: Annotated[
        str, typer.Option(help="standard, quick, or attacks with commas between them")
    ] = "standard",
    norm: Annotated[str, typer.Option(help="Linf or L2")] = "Linf",
    steps: Annotated[
        int | None, typer.Option(min=1, show_default="the suite's", help="of a gradient attack")
    ] = None,
    queries: Annotated[
        int | None, typer.Option(min=1, show_default="the suite's", help="of Square")
    ] = None,
    restarts: Annotated[int, typer.Option(min=1, help="random starts")] = 1,
    eot: Annotated[
        int, typer.Option(min=1, help="calls of a randomised model that are averaged over")
    ] = 1,
    batch: Annotated[int, typer.Option(min=1, help="images at a time")] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, help="images of a class", show_default="all")
    ] = None,
    checks: Annotated[
        int, typer.Option(min=1, help="images that the attack itself is checked on")
    ] = 20,
    template: Annotated[
        str | None,
        typer.Option(
            help="a prompt, {} for the name",
            show_default="the one that a model of this project was trained with, "
            "else a photo of a(n) {}",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 0,
    out: Annotated[Path, typer.Option(help="a folder for what comes out")] = Path("hierclip-audit"),
) -> None:
    """Measure how robust a CLIP model is at every level of a class tree over your own images.

    Prints a table, and writes to --out: the record (JSON), the outcome of every image, figures (PNG
    and PDF) and a page, report.html: notebook 95_audit, executed. The tree: a file (an outline in
    YAML or JSON, a CSV of paths), or WordNet's. Without --tree it is WordNet's if every class
    folder is a WordNet id, a synset (dog.n.01) or a name of one sense there, else there are no
    levels but the leaves; `hierclip tree` shows it beforehand. The suite "standard" is
    AutoAttack's (APGD-CE, targeted APGD-DLR, targeted FAB and Square, 100 steps and 5000 queries):
    it wants a GPU. "quick" is two APGDs of 8 steps.

    The same command resumes an audit that was stopped. Exit code: 0; 1 where a gradient-masking
    check failed, so that the accuracies cannot be trusted yet; 2 where something given is not
    right.

    \b
    Examples:
      hierclip audit --model ViT-B-32 --pretrained openai --images my-images
      hierclip audit --model ViT-B-32 --pretrained mine.pt --images my-images --tree zoo.yaml
      hierclip audit --model ViT-B-32 --pretrained openai --images val --limit 5 --suite quick
      hierclip audit --model my-clip --images my-images --tree wordnet --synsets which.yaml
    """
    given = locals() | {"tree": tree or [], "widths": parse_widths(widths)}
    given |= {"mean": parse_channels("--mean", mean), "std": parse_channels("--std", std)}
    from hierclip.audits import RECORD, read_arguments
    from hierclip.evaluation.records import parse_record

    read_arguments(given | {"labels": None, "classes": None})
    executed = run_notebook(NOTEBOOKS / "95_audit.ipynb", given)
    from nbconvert import HTMLExporter
    from traitlets.config.loader import PyFileConfigLoader

    config = PyFileConfigLoader("nbconvert_config.py", str(NOTEBOOKS)).load_config()
    page, _ = HTMLExporter(config=config).from_notebook_node(executed)  # it loads nothing
    (out / PAGE).write_text(page, encoding="utf8")
    typer.echo((out / "table.md").read_text(encoding="utf8"))
    typer.echo(f"{out / PAGE}: all of it, with figures")
    record = parse_record((out / RECORD).read_text(encoding="utf8"), RECORD)
    if record.audit.failed:
        raise typer.Exit(1)


def parse_channels(option: str, text: str | None) -> list[float] | None:
    """Read "0.5,0.5,0.5" as numbers. Raises HierclipError for anything else."""
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise HierclipError(f"{option} {text}: write three numbers like 0.5,0.5,0.5") from None
