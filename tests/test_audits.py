"""Audits of what is not plain: a model that a hub keeps, several trees."""

import json

import open_clip
import pytest

from hierclip import model
from hierclip.audits import class_trees, open_model
from hierclip.evaluate.records import parse_record
from hierclip.model import ModelError
from hierclip.trees import TreeError, load_tree
from tests.conftest import LEAVES
from tests.miniatures import COUNT
from tests.test_cli import ARCHITECTURE, QUICK, place, run, weights

__all__ = ["place", "run", "weights"]  # fixtures


@pytest.fixture
def hub(backbone, tmp_path, monkeypatch):
    """Hugging Face's hub, which keeps one model."""
    model.save(backbone, tmp_path / "hub")
    config = json.loads((tmp_path / "hub/open_clip_config.json").read_text(encoding="utf8"))
    weights = str(tmp_path / "hub/open_clip_model.safetensors")
    kept = {"_get_hf_config": config, "download_pretrained_from_hf": weights}
    for name, value in kept.items():
        monkeypatch.setattr(
            open_clip.factory, name, lambda model_id, *_, value=value, **__: {"me/clip": value}[model_id]
        )
    return backbone


def test_a_model_of_the_hub_brings_its_weights_and_is_called_by_its_name(hub):
    found, size = open_model("hf-hub:me/clip", None)
    expected = hub.clip.state_dict()
    assert (found.method, size) == ("clip", 32)
    assert all(value.equal(expected[key]) for key, value in found.backbone.clip.state_dict().items())
    with pytest.raises(ModelError, match="hf-hub:me/clip has weights of its own; leave out 'openai'"):
        open_model("hf-hub:me/clip", "openai")
    with pytest.raises(ModelError, match="cannot load hf-hub:me/other"):
        open_model("hf-hub:me/other", None)


def test_an_audit_in_two_trees_measures_both_on_the_same_pictures(place, run, weights):
    outlines = {
        "kinds": {"animal": {"mammal": ["dog", "cat"], "bird": ["eagle"]}, "vehicle": ["car", "bus"]},
        "sizes": {"big": ["bus", "car"], "small": ["eagle", "dog", "cat"]},
    }
    for name, outline in outlines.items():
        (place / f"{name}.json").write_text(json.dumps(outline), encoding="utf8")
    arguments = ["--model", ARCHITECTURE, "--pretrained", weights, "--images", "zoo", *QUICK, "--checks", "10"]
    code, out, err = run("audit", *arguments, "--tree", "kinds.json", "--tree", "sizes.json")
    made = place / "hierclip-audit"
    record = parse_record((made / "record.json").read_text(encoding="utf8"), "record.json")
    assert code == (1 if record.audit.failed else 0) and record.images == 5 * COUNT
    assert record.levels == [5, 4, 2]  # of the first tree, whose figures come first
    assert {name: (tree.images, tree.levels) for name, tree in record.forest.items()} == {
        "kinds": (10, [5, 4, 2]), "sizes": (10, [5, 2])
    }  # fmt: skip
    assert "tree kinds, levels of 5, 4, 2 nodes; tree sizes, levels of 5, 2 nodes" in err
    kept = [load_tree(made / f"trees/{name}.json") for name in outlines]
    assert [tree.hash for tree in kept] == list(record.trees.values())
    assert kept[0].ids == kept[1].ids and set(kept[0].ids) == set(LEAVES)
    said = out.split("Every tree, on 10 of the pictures:\n\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said]
    assert [row[:2] for row in rows[2:]] == [["kinds", "5, 4, 2"], ["sizes", "5, 2"]]
    for row, tree in zip(rows[2:], record.forest.values(), strict=True):
        assert row[2].startswith(f"{100 * tree.path_robust['direct']:.1f} [")
    page = (made / "report.html").read_text(encoding="utf8")
    assert "Every tree, on 10 of the pictures" in page and "sizes: coarsest superclasses inside" in page
    assert (made / "figures/tree_kinds.png").exists() and (made / "figures/tree_sizes.png").exists()


def test_a_tree_over_some_of_the_classes_or_others_is_refused_by_name(tree):
    classes = {leaf: leaf for leaf in LEAVES}
    assert class_trees(classes, [tree]) == [tree]
    with pytest.raises(TreeError, match="^tree tiny is over no class bus, eagle$"):
        class_trees(classes, [tree.restrict(["dog", "cat", "car"])])
    with pytest.raises(TreeError, match="^tree tiny is over no class yak; .* no class here: car, dog$"):
        class_trees({"cat": "cat", "eagle": "eagle", "bus": "bus", "yak": "yak"}, [tree])
