"""How robust a model is, asked by somebody who has no project."""

import os
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from hierclip.cli.run import run_notebook
from hierclip.cli.tree import Synsets, Widths, parse_list
from hierclip.errors import HierclipError

Channels = Annotated[
    str | None, typer.Option(help="of red, green, blue, such as 0,0,0", show_default="the model's")
]
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAGE = "report.html"


def audit(
    model: Annotated[
        list[str],
        typer.Option(
            help="an architecture of open_clip, hf-hub:NAME, or the folder of a model; may be "
            "given again"
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Option(
            help="a folder of images for each class, the folder named by the class; or of shards; "
            "may be given again"
        ),
    ],
    pretrained: Annotated[
        list[str] | None,
        typer.Option(
            help="a published tag, or a checkpoint file; for several models one of each, in turn"
        ),
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
        list[str] | None,
        typer.Option(help="a tree's file, wordnet, or one of `tree --list`; may be given again"),
    ] = None,
    synsets: Synsets = None,
    widths: Widths = None,
    eps: Annotated[
        str, typer.Option(help="budget: n/255, or a share of 1, such as 0.004")
    ] = "1/255",
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
    folder is a WordNet id, a synset (dog.n.01) or a name of one sense there (where no full WordNet
    is installed: among the classes of ImageNet, Tiny-ImageNet and emoji), else there are no levels
    but the leaves; `hierclip tree` shows it beforehand. The suite "standard" is
    AutoAttack's (APGD-CE, targeted APGD-DLR, targeted FAB and Square, 100 steps and 5000 queries):
    it wants a GPU. "quick" is two APGDs of 8 steps.

    Of several models or folders of images every pair is audited, into a folder of its own in --out,
    and compared as `hierclip compare` does. Under torchrun the processes share the images.

    The same command resumes an audit that was stopped; what is finished is read. Exit code: 0; 1
    where a gradient-masking check failed, so that the accuracies cannot be trusted yet; 2 where
    something given is not right.

    \b
    Examples:
      hierclip audit --model ViT-B-32 --pretrained openai --images my-images
      hierclip audit --model ViT-B-32 --pretrained mine.pt --images my-images --tree zoo.yaml
      hierclip audit --model ViT-B-32 --pretrained openai --images val --limit 5 --suite quick
      hierclip audit --model my-clip --images my-images --tree wordnet --synsets which.yaml
      hierclip audit --model ViT-L-14 --pretrained fare.pt --pretrained tecoa.pt --images my-images
      torchrun --nproc-per-node 4 -m hierclip audit --model my-clip --images my-images
    """
    given = locals() | {
        "tree": tree or [],
        "widths": parse_list("--widths", widths, int, "24,12,5"),
        "mean": parse_list("--mean", mean, float, "0.5,0.5,0.5"),
        "std": parse_list("--std", std, float, "0.5,0.5,0.5"),
    }
    pairs = model_pairs(model, pretrained or [])
    every = list(product(pairs, images))
    several = len(every) > 1
    worst = 0
    for ((name, weights), place), folder in zip(every, folder_names(every), strict=True):
        changes = {
            "model": name,
            "pretrained": weights,
            "images": place,
            "out": out / folder if several else out,
        }
        try:
            code = audit_one(given | changes)
        except HierclipError as error:
            if not several:
                raise
            typer.echo(f"hierclip: {error}", err=True)
            code = 2
        worst = max(worst, code)
    if several and os.environ.get("RANK", "0") == "0":
        compare([out])
    raise typer.Exit(worst)


def folder_names(every: list[tuple[tuple[str, str | None], Path]]) -> list[str]:
    """Return the name of a folder for each audit: of the whole paths where the files' are alike."""
    from hierclip.audits import file_name

    short = [(name, Path(weights or "").stem, place.name) for (name, weights), place in every]
    whole = [(name, weights or "", str(place)) for (name, weights), place in every]
    parts = short if len(set(short)) == len(short) else whole
    return [file_name("-".join(filter(None, each))) for each in parts]


def model_pairs(models: list[str], weights: list[str]) -> list[tuple[str, str | None]]:
    """Pair models and weights, of either of which there may be one for all of the other."""
    if not weights:
        return [(model, None) for model in models]
    count = max(len(models), len(weights))
    if {len(models), len(weights)} - {1, count}:
        raise HierclipError(
            f"{len(models)} of --model and {len(weights)} of --pretrained; give one of either, or "
            "as many of one as of the other"
        )
    pairs = zip(models * (count // len(models)), weights * (count // len(weights)), strict=True)
    return list(pairs)


def audit_one(given: dict[str, Any]) -> int:
    """Audit a model on a folder of images, print its table, and return the exit code."""
    from torch import distributed as dist

    from hierclip.audits import RECORD, read_arguments
    from hierclip.evaluation.records import parse_record

    read_arguments(given)
    notebook, out = NOTEBOOKS / "95_audit.ipynb", given["out"]
    if dist.is_torchelastic_launched():
        from hierclip.distributed import run_script

        run_script(notebook, given)
    if os.environ.get("RANK", "0") != "0":
        return 0
    group = os.environ.pop("TORCHELASTIC_RUN_ID", None)  # of which the notebook is no part
    try:
        write_page(notebook, given, out / PAGE)
    finally:
        os.environ |= {"TORCHELASTIC_RUN_ID": group} if group else {}
    typer.echo((out / "table.md").read_text(encoding="utf8"))
    typer.echo(f"{out / PAGE}: all of it, with figures")
    record = parse_record((out / RECORD).read_text(encoding="utf8"), RECORD)
    return int(bool(record.audit.failed))


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="of an audit, or with a folder for each; one or more")
    ],
    claims: Annotated[
        Path | None,
        typer.Option(
            help="what papers say: a CSV of model, images, claimed (percent), or RobustBench's JSON"
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="robustbench or clip_benchmark: write a file of that shape too"),
    ] = None,
) -> None:
    """Put audits beside one another: a page, a CSV and a table.

    For each model and its images: the claimed accuracy, accuracy without an attack, under PGD-20
    and under the suite, the worst level and path-robust accuracy in both readings, and the checks
    of the attack. What is written goes to the first folder.

    \b
    Examples:
      hierclip compare audit-1 audit-2
      hierclip compare audits --claims papers.csv
      hierclip compare audits --format robustbench
    """
    given = {"folders": list(map(str, folders)), "claims": claims, "format": format}
    write_page(NOTEBOOKS / "96_compare.ipynb", given, folders[0] / "compare.html")
    typer.echo((folders[0] / "compare.md").read_text(encoding="utf8"))
    typer.echo(f"{folders[0] / 'compare.html'}: the same as a page, beside compare.csv")


def write_page(notebook: Path, given: dict[str, Any], path: Path) -> None:
    """Run a notebook, and turn it into a page of one file, which loads nothing."""
    from nbconvert import HTMLExporter
    from traitlets.config.loader import PyFileConfigLoader

    config = PyFileConfigLoader("nbconvert_config.py", str(NOTEBOOKS)).load_config()
    page, _ = HTMLExporter(config=config).from_notebook_node(run_notebook(notebook, given))
    path.write_text(page, encoding="utf8")
