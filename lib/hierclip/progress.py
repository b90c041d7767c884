"""Long work: how far it is, and whether what is kept of it may be gone on with."""

import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from hierclip.distributed import rank

T = TypeVar("T")
HEADLESS = "HIERCLIP_HEADLESS"  # set in the environment of a notebook that nobody watches
LINES = 10  # printed by a loop that has no bar
FORMAT = (
    2  # of what is kept of unfinished work; raise it when the same inputs would give other numbers
)

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
    """Tell whether DVC, which names its stage in the environment, or `hierclip audit` runs this
    notebook.
    """
    return "DVC_STAGE" in os.environ or HEADLESS in os.environ


def progress(
    items: Collection[T], what: str, done: int = 0, note: Callable[[], str] = str
) -> Iterator[T]:
    """The items one by one, showing how many of them, and of the `done` before them, are through.

    note: called after an item, says what else to show. A bar where someone watches; under DVC a
    line now and then, which its log keeps and the executed notebook does not: two runs of that are
    to be the same to the byte.
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


def fingerprint(*parts: object) -> str:
    """Hash tensors to the bit, and other parts as they print: SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):  # flattened, a slice can still lie scattered
            digest.update(part.detach().cpu().flatten().contiguous().numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def cache_key(*parts: object) -> str:
    """Hash all that kept work rests on, configuration, data and weights, with FORMAT; each part for
    itself.
    """
    kinds = [
        (str(part.dtype), tuple(part.shape)) if isinstance(part, Tensor) else () for part in parts
    ]
    return fingerprint(
        FORMAT, [(*kind, fingerprint(part)) for kind, part in zip(kinds, parts, strict=True)]
    )


def kept_under(
    key: str, path: Path, read: Callable[[Path], Mapping[str, Any]], what: str
) -> Mapping[str, Any] | None:
    """What `read` finds in a file whose entry "key" is `key`; None where it is another or there is
    no file.

    A file that cannot be read is as none: a warning names it, and says that `what` starts from the
    beginning.
    """
    try:
        found = read(path) if path.exists() else {"key": None}
        return found if str(found["key"]) == key else None
    except Exception as error:  # each reader raises its own kinds for a damaged file
        said = (str(error).splitlines() or [""])[0] or type(error).__name__
        warnings.warn(
            f"{path} cannot be read ({said}); {what} starts from the beginning", stacklevel=2
        )
        return None
