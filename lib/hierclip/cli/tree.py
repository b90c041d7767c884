"""The command that shows and checks a class tree."""

from pathlib import Path
from typing import Annotated

import typer

from hierclip.errors import HierclipError, refuse

Synsets = Annotated[
    Path | None, typer.Option(help="`class: synset` lines (YAML), or CSV: class, synset, under")
]
Widths = Annotated[
    str | None,
    typer.Option(help="most nodes at levels 1, 2 ..., such as 24,12,5", show_default="auto"),
]


def tree(
    classes: Annotated[str | None, typer.Option(help="names with commas between them")] = None,
    images: Annotated[Path | None, typer.Option(help="a folder of images for each class")] = None,
    tree: Annotated[
        str | None,
        typer.Option(help="a tree's file, wordnet, or one of --list", show_default="wordnet"),
    ] = None,
    synsets: Synsets = None,
    widths: Widths = None,
    template: Annotated[str, typer.Option(help="a prompt, {} for the name")] = "a photo of a(n) {}",
    out: Annotated[
        Path | None,
        typer.Option(help="a .json file, which audit --tree reads, or a .csv file of a row a leaf"),
    ] = None,
    draw: Annotated[Path | None, typer.Option(help="a figure of it: .png, .pdf or .svg")] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="list the trees that come with hierclip, and end")
    ] = False,
) -> None:
    """Build or read a class tree, print it level by level, and check the names of its nodes.

    Classes are given by name, or are those of a folder of images, or of the tree's file. A tree's
    file is an outline in YAML or JSON, a CSV of paths (leaf,parent,...), or one that --out wrote.
    Published sets of images have trees that come with hierclip: --list names them, and --tree
    imagenet takes one, of the given classes or of all. Exit code 1: two nodes of a level have one
    name.

    \b
    Examples:
      hierclip tree --images my-images --out tree.json --draw tree.png
      hierclip tree --classes lion,eagle,shark --synsets which.yaml
      hierclip tree --tree zoo.yaml
      hierclip tree --tree imagenet/use --out imagenet-use.csv
    """
    if list_all:
        list_trees()
        raise typer.Exit
    refuse(
        {
            f"{option} {path}: its name has to end in {' or '.join(known)}": (
                path is not None and path.suffix.lower() not in known
            )
            for option, path, known in (
                ("--out", out, [".json", ".csv"]),
                ("--draw", draw, [".png", ".pdf", ".svg"]),
            )
        }
    )
    most = parse_list("--widths", widths, int, "24,12,5")
    import networkx as nx

    from hierclip import trees
    from hierclip.trees.chosen import class_trees, same_words

    leaves = _leaves(classes, images, tree)
    (class_tree,) = class_trees(leaves, [tree or "wordnet"], synsets, most)
    graph = class_tree.graph()
    for node in list(nx.dfs_preorder_nodes(graph, class_tree.root.id))[1:]:
        level = graph.nodes[node]["level"]
        words = graph.nodes[node]["name"] + (f" ({level})" if level else "")
        typer.echo("  " * (len(nx.ancestors(graph, node)) - 1) + words)
    typer.echo(
        f"\ntree {class_tree.name}: levels of {', '.join(map(str, class_tree.sizes))} nodes, "
        "leaves first; (n): level n"
    )
    for level, prompts in enumerate(trees.level_prompts(class_tree, template)):
        typer.echo(f'level {level}: "{prompts[0]}" ...')
    if out is not None:
        write = trees.save_csv if out.suffix.lower() == ".csv" else trees.save_tree
        write(class_tree, out)
    if draw is not None:
        from hierclip.plots import style
        from hierclip.plots.tree import sunburst

        style()
        draw.parent.mkdir(parents=True, exist_ok=True)
        sunburst(class_tree).savefig(draw, dpi=150, bbox_inches="tight")
    alike = same_words(class_tree)
    if alike:
        typer.echo(
            f"FAILED: no prompt tells apart {', '.join(alike)}; give them names of their own"
        )
        raise typer.Exit(1)


def list_trees() -> None:
    """Print every tree that comes with the package, and the number of nodes of each level."""
    from hierclip.trees import load, shipped_trees

    for name, known in shipped_trees().items():
        for tree in known:
            written = name if tree == known[0] else f"{name}/{tree}"
            typer.echo(f"{written}: {', '.join(map(str, load(name, tree).sizes))}")


def parse_list(option: str, text: str | None, kind: type, example: str) -> list | None:
    """Read numbers of a kind with commas between them. Raises HierclipError for anything else."""
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise HierclipError(f"{option} {text}: write numbers like {example}") from None


def _leaves(classes: str | None, images: Path | None, tree: str | None) -> dict[str, str]:
    """Return the classes, identifier to name."""
    from hierclip import audits, data, trees
    from hierclip.trees.shipped import is_set_name

    refuse(
        {
            "both --classes and --images; one says what the classes are": (
                classes is not None and images is not None
            ),
            "no classes; give --classes, --images or --tree FILE": (
                classes is None and images is None and tree in (None, "wordnet")
            ),
        }
    )
    if images is not None:
        return audits.open_images(images, None, None).classes
    if classes is not None:
        names = [name.strip() for name in classes.split(",") if name.strip()]
        if len(set(names)) < max(2, len(names)):
            raise HierclipError(
                f"--classes {classes}: {len(names)} names; two or more are needed, each once"
            )
        return {name: data.class_name(name, None) for name in names}
    named = is_set_name(str(tree))
    whole = trees.load(*str(tree).split("/", 1)) if named else trees.read_tree(Path(str(tree)))
    return {leaf.id: leaf.name for leaf in whole.leaves}
