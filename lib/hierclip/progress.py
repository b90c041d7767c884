"""Progress of long work: a bar where someone watches, a line now and then where the output is kept.

An executed notebook is a result, and two runs of it are to be the same to the byte: so the lines that it
keeps say nothing of time.
"""

import os
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
LINES = 10  # printed by a loop that has no bar


def headless() -> bool:
    """Whether DVC runs this: it names its stage in the environment."""
    return "DVC_STAGE" in os.environ


def progress(items: Collection[T], what: str, done: int = 0, note: Callable[[], str] = str) -> Iterator[T]:
    """The items one by one, showing how many of them, and of the `done` before them, are through.

    note: called after an item, says what else to show.
    """
    total = done + len(items)
    if headless():
        every = max(1, total // LINES)
        for count, item in enumerate(items, start=done + 1):
            yield item
            if count % every == 0 or count == total:
                print(f"{what}: {count}/{total} {note()}".rstrip(), flush=True)
    else:
        with tqdm(total=total, initial=done, desc=what) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(note(), refresh=False)
                bar.update()
