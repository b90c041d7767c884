"""Long work: how far it is, and whether what is kept of it may be gone on with."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from hierclip.distributed import rank

T = TypeVar("T")
LINES = 10  # printed by a loop that has no bar
SHOWING = ("plots", "widgets", "audits", "cli")  # rooms that only show: no result rests on them

_shown = True


@contextmanager
def quiet() -> Iterator[None]:
    """Shows no progress inside: for one of several processes at work."""
    global _shown
    before, _shown = _shown, False
    try:
        yield
    finally:
        _shown = before


def headless() -> bool:
    """Whether DVC runs this: it names its stage in the environment."""
    return "DVC_STAGE" in os.environ


def progress(items: Collection[T], what: str, done: int = 0, note: Callable[[], str] = str) -> Iterator[T]:
    """The items one by one, showing how many of them, and of the `done` before them, are through.

    note: called after an item, says what else to show. A bar where someone watches; under DVC a line now and then,
    which its log keeps and the executed notebook does not: two runs of that are to be the same to the byte.
    """
    total, start = done + len(items), monotonic()
    if not _shown or rank():  # of several processes the first one shows it
        yield from items
        return
    if not headless():
        with tqdm(total=total, initial=done, desc=what) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(note(), refresh=False)
                bar.update()
        return
    every = max(1, total // LINES)
    for count, item in enumerate(items, start=done + 1):
        yield item
        if count % every == 0 or count == total:
            left = (monotonic() - start) / (count - done) * (total - count)
            print(f"{what}: {count}/{total} {note()} ({left:.0f} s left)", flush=True)
    forget_output()


def forget_output() -> None:
    """Takes out of the executed notebook what a cell has shown so far, under DVC."""
    if not headless():
        return
    from IPython import get_ipython
    from IPython.display import clear_output

    if get_ipython() is not None:
        clear_output()


def work_hash(*parts: object) -> str:
    """SHA-256 of tensors to the bit, and of other parts as they print."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):  # flattened, a slice can still lie scattered
            digest.update(part.detach().cpu().flatten().contiguous().numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def work_key(*parts: object) -> str:
    """A key of what work rests on: tensors to the bit, other parts as they print, and this package's source but for
    SHOWING.
    """
    digest, package = hashlib.sha256(work_hash(*parts).encode()), Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] not in SHOWING:
            digest.update(file.read_bytes())
    return digest.hexdigest()
