"""A class tree, before anything is attacked in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hierclip.errors import HierclipError

Synsets = Annotated[Path | None, typer.Option(help="`class: synset` lines (YAML), or CSV: class, synset, under")]
Widths = Annotated[str | None, typer.Option(help="most nodes at levels 1, 2 ..., such as 24,12,5", show_default="auto")]
Images = Annotated[Path | None, typer.Option(help="a folder of pictures for each class")]


def tree(
    classes: Annotated[
        str | None, typer.Option(help="names with commas between them, or a file of a name a line")
    ] = None,
    images: Images = None,
    tree: Annotated[str | None, typer.Option(help="a tree's file, or wordnet", show_default="wordnet")] = None,
    synsets: Synsets = None,
    widths: Widths = None,
    template: Annotated[str, typer.Option(help="a prompt, {} for the name")] = "a photo of a(n) {}",
    out: Annotated[Path | None, typer.Option(help="a .json file for the tree, which audit --tree reads")] = None,
    draw: Annotated[Path | None, typer.Option(help="a picture of it: .png, .pdf or .svg")] = None,
) -> None:
    """Build a class tree, or read one, print it level by level and check it; exit 1 where two nodes are called alike.

    Classes are given by name, or are those of a folder of pictures, or what the tree's file has. A tree's file is an
    outline in YAML or JSON, a CSV of paths (leaf,parent,...), or one that --out wrote.

    \b
    Examples:
      hierclip tree --images my-images --out tree.json --draw tree.png
      hierclip tree --classes lion,eagle,shark --synsets which.yaml
      hierclip tree --tree zoo.yaml
    """
    for option, path, endings in (("--out", out, (".json",)), ("--draw", draw, (".png", ".pdf", ".svg"))):
        if path is not None and path.suffix.lower() not in endings:
            raise HierclipError(f"{option} {path}: its name has to end in {' or '.join(endings)}")
    wanted = parse_widths(widths)
    from hierclip.audits import class_trees, same_words
    from hierclip.trees import level_prompts, save_tree

    leaves = _leaves(classes, images, tree)
    (made,) = class_trees(leaves, [tree or "wordnet"], synsets, wanted)
    typer.echo("\n".join(outline(made)))
    typer.echo(f"\ntree {made.name}: levels of {', '.join(map(str, made.sizes))} nodes, leaves first")
    for level, prompts in enumerate(level_prompts(made, template)):
        alone = ", ".join(node.name for node in made.singletons(level)) if level else ""
        typer.echo(f'level {level}: "{prompts[0]}" ...' + (f"; of one leaf: {alone}" if alone else ""))
    if out is not None:
        save_tree(made, out)
    if draw is not None:
        _draw(made, draw)
    if alike := same_words(made):
        typer.echo(f"FAILED: no prompt tells apart {', '.join(alike)}; give them names of their own")
        raise typer.Exit(1)


def parse_widths(text: str | None) -> list[int] | None:
    """ "24,12,5" as numbers. Raises HierclipError for what is none."""
    parts = [] if text is None else text.split(",")
    if bad := [part for part in parts if not part.strip().isdecimal() or not int(part)]:
        raise HierclipError(f"--widths {text}: {bad[0]!r} is no number of nodes; write them like 24,12,5")
    return [int(part) for part in parts] or None


def outline(tree) -> Iterator[str]:
    """A line for each node, two spaces in for each level below the coarsest; a node on several levels once."""
    graph, todo = tree.graph(), [(tree.root.id, -1)]
    while todo:
        node, depth = todo.pop()
        if depth >= 0:
            level = graph.nodes[node]["level"]
            yield "  " * depth + graph.nodes[node]["name"] + (f" ({level})" if level else "")
        todo += [(child, depth + 1) for child in reversed(list(graph.successors(node)))]


def _leaves(classes: str | None, images: Path | None, tree: str | None) -> dict[str, str]:
    """The classes, identifier to name."""
    from hierclip.audits import image_source
    from hierclip.data import class_name
    from hierclip.trees import leaves_of

    if classes is not None and images is not None:
        raise HierclipError("both --classes and --images; one says what the classes are")
    if images is not None:
        return image_source(images).classes
    if classes is not None:
        file = "," not in classes and Path(classes).is_file()
        lines = Path(classes).read_text(encoding="utf8").splitlines() if file else classes.split(",")
        names = [name for line in lines if (name := line.strip())]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise HierclipError(f"--classes {classes}: {len(names)} names; two or more are needed, each once")
        return {name: class_name(name, None) for name in names}
    if tree is None or tree == "wordnet":
        raise HierclipError("no classes; give --classes, --images or --tree FILE")
    return leaves_of(Path(tree))


def _draw(tree, path: Path) -> None:
    from matplotlib import rc_context

    from hierclip.plots import STYLE
    from hierclip.plots.tree import sunburst

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):  # pyright: ignore
        sunburst(tree).savefig(path, dpi=150, bbox_inches="tight")
