"""Levels above the leaves read through the leaves that an image recalls."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from hierclip import model
from hierclip.model import CosineHead, EuclideanHead, PoincareHead, RecallHead
from hierclip.model.classifier import read
from hierclip.model.memory import Memory, make_memory
from hierclip.trees import tree_from_graph
from tests.conftest import LEAVES, sizes_graph, tiny_graph

close = torch.testing.assert_close
TEMPLATE = "a picture of a {}"
BALL, FLAT = PoincareHead(0.7, 2.0, 2.0, 1.0, 7.0), EuclideanHead(1.0, 2.0, 2.0, 1.0, 7.0)


def head_of(space=BALL, sharpness=2.0, own=0.5) -> RecallHead:
    return RecallHead(CosineHead(5.0), space, sharpness, own)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(head: RecallHead, leaves, above) -> Memory:
    """Of one level above the leaves, the coarsest of two."""
    return Memory(head, leaves, [head.space.text_points(above, 1, 2)], [(0, 2), (1, 2)])


def test_an_image_stands_where_the_hyperboloids_weighted_mean_is_taken_back_to():
    """The oracle knows no Einstein midpoint: weighted sums of points on the hyperboloid are scaled onto it again."""
    head, leaves, above, seen = head_of(), drawn(6, 4), drawn(6, 4, seed=1), F.normalize(drawn(3, 4, seed=2), dim=1)
    found = memory_of(head, leaves, above)(seen, 1)
    r = 0.7
    for u, point in zip(seen.double(), found, strict=True):
        scores = [5.0 * 2.0 * float(u @ t / t.norm()) for t in leaves.double()] + [5.0 * 2.0 * 0.5]
        weights = torch.tensor(scores, dtype=torch.float64).exp()
        total = torch.zeros(5, dtype=torch.float64)
        for weight, v in zip(weights / weights.sum(), [*above.double(), u], strict=True):
            angle = torch.tensor(2 * r**0.5 * 1.5)  # level 1 of 2: halfway from radius 2 to radius 1
            total += weight * torch.cat([torch.cosh(angle)[None], torch.sinh(angle) * v / v.norm()])
        total = total / (total[0] ** 2 - total[1:].square().sum()).sqrt()
        close(point, (total[1:] / (1 + total[0]) / r**0.5).float())


def test_in_flat_space_it_stands_at_the_weighted_mean():
    head, leaves, above, seen = head_of(FLAT), drawn(6, 4), drawn(6, 4, seed=1), F.normalize(drawn(3, 4, seed=2), dim=1)
    alike = torch.cat([seen @ F.normalize(leaves, dim=1).T, torch.full((3, 1), 0.5)], dim=1)
    weights = (10 * alike).softmax(1)
    mean = weights[:, :-1] @ (1.5 * F.normalize(above, dim=1)) + weights[:, -1:] * 1.5 * seen
    close(memory_of(head, leaves, above)(seen, 1), mean)


def test_an_image_that_recalls_one_leaf_stands_at_its_ancestor_and_a_torn_one_nearer_to_the_centre():
    leaves, above = (
        torch.eye(4)[:3],
        torch.eye(4)[[3, 3, 0]],
    )  # the first two leaves share an ancestor
    head = head_of(sharpness=100.0, own=-1.0)
    seen = F.normalize(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [1.0, 1.0, 0, 0], [0, 1.0, 1.0, 0]]), dim=1)
    points = memory_of(head, leaves, above)(seen, 1)
    there = head.space.text_points(above, 1, 2)
    close(points[:3], there[[0, 2, 0]])  # torn within one superclass is not torn
    assert points[3].norm() < 0.9 * there[0].norm()


def test_an_image_that_recalls_nothing_is_read_by_prompts(backbone, tree):
    """`own` above every cosine: the nearest text is then the one of the largest cosine, as a cosine head has it."""
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    recalling = model.make_classifier(backbone, head_of(sharpness=100.0, own=2.0), tree, TEMPLATE, [tree])
    plain = model.make_classifier(backbone, CosineHead(5.0), tree, TEMPLATE)
    for found, expected in zip(recalling(images), plain(images), strict=True):
        assert torch.equal(found.argmax(1), expected.argmax(1))


def test_an_image_that_is_sure_of_its_leaf_is_read_as_rolled_up(backbone, tree):
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model.make_classifier(backbone, head_of(sharpness=1e5, own=-1.0), tree, TEMPLATE, [tree])(images)
    readings = read(logits, torch.from_numpy(tree.paths))
    assert torch.equal(readings["direct"], readings["roll_up"])


@pytest.mark.parametrize("own", [-1.0, 0.5])
def test_ball_and_flat_space_decide_alike_while_a_level_stands_at_one_radius(backbone, forest, own):
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ball, flat = (model.make_classifier(backbone, head_of(s, own=own), forest, TEMPLATE, forest) for s in (BALL, FLAT))
    for bent, straight in zip(ball(images), flat(images), strict=True):
        assert torch.equal(bent.argmax(1), straight.argmax(1))


def test_a_level_finds_its_ancestors_in_the_tree_of_its_name_or_at_its_height_in_the_first():
    tiny, sizes = tree_from_graph(tiny_graph(), "tiny", LEAVES), tree_from_graph(sizes_graph(), "sizes", LEAVES)
    known = tiny.restrict(["dog", "eagle", "car"])
    said = {tree.name: [drawn(n, 4, seed=k) for k, n in enumerate(tree.sizes)] for tree in (known, sizes)}
    head = head_of()
    memory = make_memory(head, [known, sizes], [tiny, replace(sizes, name="others")], lambda tree: said[tree.name])
    close(memory.leaves, F.normalize(said["tiny"][0], dim=1))
    for k, (there, level, top) in enumerate([(1, 1, 2), (2, 2, 2), (2, 1, 1)], 1):  # tiny's two, the one of the other
        texts = said["tiny"][there][torch.from_numpy(known.paths[:, there])]
        close(getattr(memory, f"ancestors_{k}"), head.space.lift(head.space.text_points(texts, level, top)))


def test_what_it_remembers_is_saved_with_the_model(tmp_path, backbone, forest):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    known = tuple(tree.restrict(["dog", "eagle", "car"]) for tree in forest)
    saved = model.Model(backbone, head_of(), "recall", known)
    model.save_model(saved, tmp_path)
    loaded = model.load_model(tmp_path)
    assert [tree.hash for tree in loaded.remembered] == [tree.hash for tree in known]
    before, after = (m.classifier(forest, TEMPLATE)(images) for m in (saved, loaded))
    for a, b in zip(before, after, strict=True):
        close(a, b)
    knowing_all = model.make_classifier(backbone, head_of(), forest, TEMPLATE)
    assert not torch.equal(knowing_all(images)[1], before[1])  # it recalls the leaves that it is asked about


def test_its_gradient_reaches_the_image_and_is_finite():
    head, seen = head_of(sharpness=50.0), F.normalize(drawn(3, 4, seed=2), dim=1).requires_grad_(True)
    leaves = drawn(6, 4)
    points = memory_of(head, leaves, drawn(6, 4, seed=1))(seen, 1)
    logits = head.space.logits(points, head.space.text_points(drawn(4, 4, seed=3), 1, 2))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), seen)
    assert gradient.isfinite().all() and (gradient.norm(dim=1) > 0).all()
