import shutil
from pathlib import Path

import torch

from hierclip import progress as module
from hierclip.progress import HEADLESS, cache_key, fingerprint, progress


def test_under_dvc_progress_is_lines_and_every_item_comes_through(monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "attack")
    assert list(progress(range(10, 30), "work", done=10, note=lambda: "loss 1")) == list(
        range(10, 30)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("work: 12/30 loss 1 (")
    assert lines[-1].startswith("work: 30/30 loss 1 (0 s left)")


def test_where_someone_watches_progress_prints_no_lines(monkeypatch, capsys):
    for name in ("DVC_STAGE", HEADLESS):
        monkeypatch.delenv(name, raising=False)
    assert list(progress(range(3), "work")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_tensors_are_hashed_by_their_values_however_they_lie_in_memory():
    table = torch.arange(12).view(6, 2)
    for part in (table[:, :1], table[::2], table.T, table[:0]):
        assert fingerprint(part) == fingerprint(part.clone(memory_format=torch.contiguous_format))
    assert fingerprint(table[:, :1]) != fingerprint(table[:, 1:])


SPLITS = {"tensor": torch.arange(6), "text": "a", "number": 1}


def test_a_key_changes_with_any_part_and_with_the_format(monkeypatch):
    key = cache_key(*SPLITS.values())
    others = {"tensor": torch.arange(6).view(2, 3), "text": "b", "number": 1.0}
    changed = [cache_key(*(SPLITS | {name: other}).values()) for name, other in others.items()]
    changed += [
        cache_key(*SPLITS.values(), None),
        cache_key(*reversed(SPLITS.values())),
        cache_key("a1"),
    ]
    changed += [cache_key(torch.arange(6).int(), "a", 1), cache_key("a", 1), cache_key("a1", "")]
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    changed.append(cache_key(*SPLITS.values()))
    assert len({key, *changed}) == 1 + len(changed)


def test_a_key_rests_on_no_source_file(monkeypatch, tmp_path):
    key = cache_key(*SPLITS.values())
    package = Path(shutil.copytree(Path(module.__file__).parent, tmp_path / "hierclip"))
    with (package / "train.py").open("a", encoding="utf8") as file:
        file.write("# another line\n")
    monkeypatch.setattr(module, "__file__", str(package / "progress.py"))
    for read in ("read_bytes", "read_text", "open"):
        monkeypatch.setattr(Path, read, None)
    assert cache_key(*SPLITS.values()) == key
