"""Ctrl-C: what a command does on SIGINT.

Python raises KeyboardInterrupt wherever its main thread is, and not all of that is passed on: it is
lost in a destructor and in the callback of a weak reference, which asyncio has for every task, and
a module that is being imported may make an ImportError of it. So a signal is noted as well.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_arrived: list[int] = []  # signals, since the command began


@contextmanager
def noticed() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on SIGINT, and note it in the list that this gives."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        _arrived.append(number)
        raise KeyboardInterrupt

    try:
        with _handled_by(interrupt):
            yield _arrived
    finally:
        _arrived.clear()


@contextmanager
def raised_by(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let the event loop raise KeyboardInterrupt, and none of the code that it calls.

    The loop's tasks are cancelled. A second signal does not wait for the loop. If there was one at
    all, no other exception, nor an end without one, gets out of here.
    """
    calls = list[asyncio.Handle]()

    def cancel() -> set[asyncio.Task]:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # not logged
            task.cancel()
        return tasks

    def stop() -> None:
        cancel()
        raise KeyboardInterrupt

    def call(number: int, _frame: FrameType | None) -> None:
        _arrived.append(number)
        if len(_arrived) > 1:
            raise KeyboardInterrupt
        calls.append(loop.call_soon_threadsafe(stop))

    with _handled_by(call):
        try:
            if not _arrived:
                yield
        finally:
            for handle in calls:
                handle.cancel()  # where the loop has not come to it
            if _arrived:
                if tasks := cancel():
                    loop.run_until_complete(asyncio.wait(tasks))
                raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT, unless this process was started to ignore it, as in a script's background."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
