import shutil
from pathlib import Path

import torch

from hierclip import progress as module
from hierclip.progress import SHOWING, progress, work_hash, work_key


def test_under_dvc_progress_is_lines_and_every_item_comes_through(monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "attack")
    assert list(progress(range(10, 30), "work", done=10, note=lambda: "loss 1")) == list(range(10, 30))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("work: 12/30 loss 1 (")
    assert lines[-1].startswith("work: 30/30 loss 1 (0 s left)")


def test_where_someone_watches_progress_prints_no_lines(monkeypatch, capsys):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert list(progress(range(3), "work")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_tensors_are_hashed_by_their_values_however_they_lie_in_memory():
    table = torch.arange(12).view(6, 2)
    for part in (table[:, :1], table[::2], table.T, table[:0]):
        assert work_hash(part) == work_hash(part.clone(memory_format=torch.contiguous_format))
    assert work_hash(table[:, :1]) != work_hash(table[:, 1:])


def test_key_of_work_changes_with_any_part():
    assert work_key("a", 1) == work_key("a", 1) != work_key("a", 2)


def test_key_of_work_changes_with_the_source_but_not_with_rooms_that_only_show(tmp_path, monkeypatch):
    package = Path(shutil.copytree(Path(module.__file__).parent, tmp_path / "hierclip"))
    monkeypatch.setattr(module, "__file__", str(package / "progress.py"))
    before = work_key("a")
    for room in SHOWING:
        (package / room / "__init__.py").write_text("1", encoding="utf8")
    assert work_key("a") == before
    (package / "train.py").write_text("1", encoding="utf8")
    assert work_key("a") != before
