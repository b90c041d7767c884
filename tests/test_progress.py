from hierclip.progress import progress, work_key


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


def test_key_of_work_changes_with_any_part():
    assert work_key("a", 1) == work_key("a", 1) != work_key("a", 2)
