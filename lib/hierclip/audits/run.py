"""An audit from its beginning to its end."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hierclip.audits.attacks import attack_params
from hierclip.audits.classes import audit_trees, same_words
from hierclip.audits.folders import Folder, picture_source, read_folder
from hierclip.audits.models import open_model
from hierclip.audits.pages import level_table, write_results
from hierclip.errors import HierclipError
from hierclip.evaluate import Record, evaluate, save_record
from hierclip.evaluate.outcomes import PARTS, outcomes_path
from hierclip.evaluate.records import git_revision, parse_record, threat_model
from hierclip.model import ImageEncoder, Model
from hierclip.params import AttackParams
from hierclip.progress import fingerprint
from hierclip.trees import Tree

RECORD, WORK, TEMPLATE = "record.json", "work", "a photo of a(n) {}"
CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Audited:
    """What an audit found: its record, the trees, the table that says it, what there is to know about it, and the
    folder where all of this lies, with figures and a page (`report.html`)."""

    record: Record = field(repr=False)
    trees: list[Tree] = field(repr=False)
    table: str = field(repr=False)
    notes: list[str]
    folder: Path

    def _repr_markdown_(self) -> str:
        return self.table


def audit(
    model: str,
    pretrained: str | None = None,
    images: str | Path = ".",
    *,
    tree: str | Path | Tree | Sequence[str | Path | Tree] = (),
    synsets: str | Path | None = None,
    widths: Sequence[int] | None = None,
    eps: str | float = "1/255",
    suite: str = "standard",
    norm: str = "Linf",
    steps: int | None = None,
    queries: int | None = None,
    restarts: int = 1,
    batch: int = 64,
    limit: int | None = None,
    checks: int = 20,
    template: str | None = None,
    device: str = "auto",
    seed: int = 0,
    out: str | Path = "hierclip-audit",
    say: Callable[[str], None] = print,
) -> Audited:
    """How robust a model is at every level of a tree over the classes of a folder of pictures.

    model, pretrained: as `open_model` takes them. images: class folders. tree, synsets, widths: as `audit_trees` takes
    them. eps, suite, steps, queries: as `attack_params`. limit: pictures of a class; all if None. checks: pictures that
    the attack is checked on, and other trees measured. template: a prompt; None is the one that a model of this project
    was trained with, else "a photo of a(n) {}". say: is told what is found before the long work begins.
    Writes to `out`. A run that was stopped goes on from what it left there; of one that is whole the record is read.
    Raises HierclipError, or one of its kind, for whatever is not right in what is given.
    """
    params = attack_params(eps, suite, steps, queries, checks, norm=norm, restarts=restarts, batch=batch, seed=seed)
    if template is not None and "{}" not in template:
        raise HierclipError(
            f"template {template!r} has no {{}} for the class's name; write it like 'a photo of a {{}}'"
        )
    if limit is not None and limit < 1:
        raise HierclipError(f"limit {limit}: a class needs one picture at least")
    place, folder, out = find_device(device), Path(images), Path(out)
    wanted = [tree] if isinstance(tree, str | Path | Tree) else list(tree)
    trees, said = audit_trees(picture_source(folder).classes, wanted, Path(synsets) if synsets else None, widths)
    audited, size = open_model(model, pretrained)
    template = template or audited.template or TEMPLATE
    if any(path.is_file() for path in (out, *out.parents)):
        raise HierclipError(f"{out} is a file, or in one; name a folder for what comes out")
    with _temporary(out / WORK / f"images-{os.getpid()}") as file:  # two audits do not share it
        dataset = read_folder(folder, size, limit, file)
        test, notes = dataset.parts["test"], [said, *_notes(trees, dataset)]
        what = f"{audited.method} on {dataset.name}: {len(test)} pictures of {len(dataset.leaves)} classes"
        say("\n".join([what, *notes]))
        facts = _facts(audited, dataset, trees, params, template)
        if (record := _earlier(out, facts)) is None:
            settings = {"seed": 0, "params": params, "template": template, "device": place}
            try:
                record, _ = evaluate(audited, dataset, trees, dataset.name, root=out / WORK, **settings)
            except torch.OutOfMemoryError:
                said = f"{place} has no memory for {batch} pictures at a time; ask for a smaller batch"
                raise HierclipError(said) from None
            record = _put(record, out)
    found = Audited(record, trees, level_table(record, trees[0]), notes, out)
    write_results(record, trees, found.table, notes, out)
    return found


@contextmanager
def _temporary(file: Path) -> Iterator[Path]:
    """Make room for a file, and remove it at the end, with the two folders above it where nothing else is in them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # what a stopped run goes on from stays
            file.parent.rmdir()
            file.parent.parent.rmdir()


def find_device(name: str) -> torch.device:
    """ "auto": the GPU where there is one. Raises HierclipError, listing those that are here, for another device."""
    count = torch.cuda.device_count()
    here = ["auto", "cpu", *["cuda"] * bool(count), *(f"cuda:{k}" for k in range(count))]
    if name not in here:
        raise HierclipError(f"no device {name!r}; here are {', '.join(here)}")
    return torch.device(("cuda" if count else "cpu") if name == "auto" else name)


def _notes(trees: Sequence[Tree], dataset: Folder) -> list[str]:
    """What a reader of the result should know of it."""
    alike = {tree.name: ", ".join(same) for tree in trees if (same := same_words(tree))}
    notes = [f"tree {name}: no prompt tells apart {nodes}" for name, nodes in alike.items()]
    if dataset.parts["val"] is dataset.parts["test"]:
        notes.append("the better reading is chosen on the audited pictures: there are no others")
    if broken := dataset.broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        notes.append(f"left out, as they cannot be read: {', '.join(broken[:5])}{more}")
    return notes


def _facts(model: Model, dataset: Folder, trees: Sequence[Tree], params: AttackParams, template: str) -> dict:
    """What makes an audit this one, as its record has it."""
    test = dataset.parts["test"]
    weights = ImageEncoder(model.backbone, fold=True).state_dict().values()
    return {
        "method": model.method,
        "trees": {tree.name: tree.hash for tree in trees},
        "threat_model": threat_model(params, template, test.images.shape[-1]),
        "settings": params.model_dump(mode="json"),
        "hashes": {"weights": fingerprint(*weights), "pictures": test.fingerprint()},
    }


def _earlier(out: Path, facts: dict) -> Record | None:
    """The record of the same audit, where there is one. Raises HierclipError where there is another one's."""
    if not (file := out / RECORD).exists():
        return None
    record = parse_record(file.read_text(encoding="utf8"), str(file))
    if odd := [key for key, value in facts.items() if getattr(record, key) != value]:
        raise HierclipError(f"{out} holds another audit ({', '.join(odd)} differ); name another folder, or remove that")
    return record


def _put(record: Record, out: Path) -> Record:
    """What `evaluate` left in the folder WORK, where a reader looks for it."""
    record = record.model_copy(update={"git": git_revision(CHECKOUT) if (CHECKOUT / "params.yaml").exists() else ""})
    (out / "outcomes").mkdir(exist_ok=True)
    for part in PARTS:
        made = outcomes_path(out / WORK, record.method, record.seed, record.split, part)
        made.replace(out / "outcomes" / f"{part}.npz")
    save_record(record, out / WORK).replace(out / RECORD)
    shutil.rmtree(out / WORK)
    return parse_record((out / RECORD).read_text(encoding="utf8"), RECORD)
