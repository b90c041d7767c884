"""Files that take their places when they are whole, and work that one process does at a time."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hierclip.errors import HierclipError
from hierclip.progress import exclusive, replacing

HOLD = """
import sys, time
from pathlib import Path
from hierclip.progress import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(path):
    """Let another process work on a path meanwhile."""
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            yield holder
        finally:
            holder.kill()


def test_a_second_process_is_refused_at_once_with_the_path_and_what_to_do(tmp_path):
    path = tmp_path / "new/work.ckpt"
    with held(path):
        began = time.monotonic()
        with pytest.raises(HierclipError) as refused, exclusive(path):
            raise AssertionError("entered")
        assert str(refused.value) == (
            f"{path}: another process is at work on it; wait until it is done, or stop it"
        )
        with exclusive(tmp_path / "new/other.ckpt"):
            assert time.monotonic() - began < 60


def test_the_lock_of_a_process_that_was_killed_means_nothing(tmp_path):
    path = tmp_path / "work"
    with held(path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert (tmp_path / "work.lock").exists()
        with exclusive(path):
            pass
    assert not list(tmp_path.iterdir())


def test_work_that_fails_gives_its_lock_back(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path / "work"):
            raise KeyError
    assert not list(tmp_path.iterdir())


def test_of_the_processes_of_one_run_the_first_asks_for_all(tmp_path, monkeypatch):
    with held(tmp_path / "work"):
        monkeypatch.setenv("RANK", "1")
        with exclusive(tmp_path / "work"):
            pass


def read(path):
    return path.read_text(encoding="utf8")


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError, OSError(28, "No space left")])
def test_a_file_keeps_its_content_until_another_is_whole(tmp_path, error):
    path = tmp_path / "new/record.json"
    with replacing(path) as part:
        part.write_text("first", encoding="utf8")
    with pytest.raises((HierclipError, KeyboardInterrupt, KeyError)), replacing(path) as part:
        part.write_text("sec", encoding="utf8")
        raise error
    assert read(path) == "first"
    with replacing(path) as part:
        part.write_text("second", encoding="utf8")
    assert read(path) == "second" and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_takes_the_place_of_another_whole_and_without_what_a_killed_process_left(tmp_path):
    path = tmp_path / "model"
    for name in ("old", "killed"):
        with pytest.raises(KeyboardInterrupt), replacing(path) as part:
            part.mkdir()
            (part / name).touch()
            if name == "killed":
                raise KeyboardInterrupt
            part.rename(path)
            raise KeyboardInterrupt
    with replacing(path) as part:
        part.mkdir()
        (part / "new").touch()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


def test_a_mistake_is_said_as_it_is(tmp_path):
    with pytest.raises(HierclipError, match="^mine$"), replacing(tmp_path / "a"):
        raise HierclipError("mine")


def save_arrays(part):
    with part.open("wb") as file:
        np.savez_compressed(file, a=np.random.default_rng(0).random(10**5))


FULL = {
    "text": lambda part: part.write_text("a" * 10**6, encoding="utf8"),
    "arrays": save_arrays,
    "torch": lambda part: torch.save(torch.randn(10**5), part),
    "safetensors": lambda part: save_file({"a": torch.randn(10**5)}, part),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_disk_that_takes_no_more_is_one_line_and_what_was_there_stays(tmp_path, kind):
    """A limit on the size of files stands for the disk's: the system refuses the same way."""
    path = tmp_path / "file"
    path.write_text("first", encoding="utf8")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, before[1]))
    try:
        with pytest.raises(HierclipError) as refused, replacing(path) as part:
            FULL[kind](part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(refused.value)
    assert message.startswith(f"{path} cannot be written (") and "\n" not in message
    assert read(path) == "first"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file/new/record.json"
    with pytest.raises(HierclipError, match=r"cannot be written \(Not a dir"), replacing(path):
        pass
