"""Long work: how far it is, what is kept of it, and that no other process does the same."""

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor, uint8
from tqdm.auto import tqdm

from hierclip.errors import HierclipError

T = TypeVar("T")
HEADLESS = "HIERCLIP_HEADLESS"  # set in the environment of a notebook that nobody watches
LINES = 10  # printed by a loop that has no bar
FORMAT = 3  # of kept work; raise it when the same inputs would give other numbers


def headless() -> bool:
    """Tell whether nobody watches this notebook: DVC or a command of `hierclip` runs it."""
    return "DVC_STAGE" in os.environ or HEADLESS in os.environ


def _first() -> bool:
    """Tell whether this is the first of the processes that share a work."""
    return os.environ.get("RANK", "0") == "0"


def progress(
    items: Collection[T], what: str, done: int = 0, note: Callable[[], str] = str
) -> Iterator[T]:
    """Return the items one by one, and show how many of them, after `done` earlier ones, are done.

    note: called after an item, says what else to show. Somebody who watches sees a bar. Headless,
    the log gets a line now and then; the executed notebook does not, so that two runs leave the
    same bytes. Of several processes the first one shows it, and a worker process shows nothing.
    """
    total, start = done + len(items), monotonic()
    if not _first() or parent_process():
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
    """Remove from the executed notebook what a cell has printed so far, where nobody watches."""
    if not headless():
        return
    from IPython import get_ipython
    from IPython.display import clear_output

    if get_ipython() is not None:
        clear_output()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes that ask for it too from working on a file or folder.

    Of the processes of one run the first asks for all. A lock ends with its process, however that
    ends; PATH.lock alone means nothing. Raises HierclipError at once where another process has it.
    """
    if not _first():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        message = f"{path}: another process is at work on it; wait until it is done, or stop it"
        raise HierclipError(message) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a file or folder to write, which takes the place of `path` when it is whole.

    Of several processes the first one's does. Raises HierclipError, and leaves what is at `path`,
    where the system refuses to write.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if _first() and part.is_dir():  # of a process that was killed
            shutil.rmtree(part)
        yield part
        if _first() and path.is_dir():
            shutil.rmtree(path)
        if _first():
            part.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save's, safetensors'
        if isinstance(error, HierclipError):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise HierclipError(f"{path} cannot be written ({reason})") from error


def fingerprint(*parts: object) -> str:
    """Hash tensors to the bit, and other parts as they print: SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):  # flattened, a slice can still lie scattered
            digest.update(part.detach().cpu().flatten().contiguous().view(uint8).numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(now: Mapping[str, str], recorded: Mapping[str, Any]) -> list[str]:
    """Name the entries that have another value now than they are recorded with, or none there."""
    return [name for name, value in now.items() if recorded.get(name) != value]


def cache_key(*parts: object) -> str:
    """Hash what kept work depends on: configuration, data and weights, each by itself; FORMAT."""
    kinds = [(str(p.dtype), tuple(p.shape)) if isinstance(p, Tensor) else () for p in parts]
    hashes = [(*kind, fingerprint(p)) for kind, p in zip(kinds, parts, strict=True)]
    return fingerprint(FORMAT, hashes)


def kept_under(
    key: str, path: Path, read: Callable[[Path], Mapping[str, Any]], what: str
) -> Mapping[str, Any] | None:
    """Return what `read` finds in a file if its entry "key" is `key`, else None.

    A file that cannot be read counts as none: a warning names it, and says that `what` starts anew.
    """
    try:
        content = read(path) if path.exists() else {"key": None}
        return content if str(content["key"]) == key else None
    except Exception as error:  # each reader raises its own kinds for a damaged file
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        warnings.warn(
            f"{path} cannot be read ({reason}); {what} starts from the beginning", stacklevel=2
        )
        return None
