"""The audit passes an honest model and catches one that hides its gradient."""

import pytest
import torch
from torch import nn

from hierclip.attacks import Budget
from hierclip.data import ImageSet
from hierclip.evaluation import LevelMatrix, gradient_masking_checks
from hierclip.evaluation.masking import BUDGETS, CHECKS
from hierclip.hyperbolic import expmap0
from hierclip.models import Classifier, CosineHead, EuclideanHead, PoincareHead
from tests.test_evaluate import PATHS

TEXTS = [torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 0, 1]])]
BUDGET = Budget(
    eps=0.1, step=0.025, steps=6, restarts=1, suite=("apgd_ce", "apgd_margin"), queries=60
)
BALL = PoincareHead(1.0, 1.5, 2.0, 1.0, 5.0)


class Colours(nn.Module):
    """The mean of each colour, through weights as a tower has them; in steps of an eighth where it
    hides that.
    """

    def __init__(self, quantised=False):
        super().__init__()
        self.mix, self.quantised = nn.Linear(3, 3, bias=False), quantised
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3))

    def forward(self, images):
        embeddings = self.mix(images.mean((2, 3)))
        return (8 * embeddings).round() + 0 * embeddings if self.quantised else embeddings


def model(head, quantised=False) -> Classifier:
    texts = [head.text_points(texts, level, 1) for level, texts in enumerate(TEXTS)]
    return Classifier(Colours(quantised), head, texts).eval()


def shown(strength, n=9, wrong=0) -> ImageSet:
    labels = torch.arange(n) % 3
    images = torch.full((n, 3, 8, 8), 40, dtype=torch.uint8)
    images[torch.arange(n), labels] = int(40 + 200 * strength)
    labels[:wrong] += 1
    return ImageSet(images, labels)


def checked(classifier, images, paths, budget, count, batch):
    matrix = LevelMatrix(classifier, images, paths, budget, seed=0, batch=batch)
    return gradient_masking_checks(matrix, count)


@pytest.mark.parametrize(
    "head",
    [CosineHead(10.0), BALL, EuclideanHead(1.0, 1.5, 2.0, 1.0, 5.0)],
    ids=["cosine", "ball", "flat"],
)
def test_an_honest_model_passes_every_check(head):
    found = checked(model(head), shown(0.2, wrong=2), PATHS, BUDGET, count=9, batch=2)
    assert found.failed == [] and found.images == 9
    flat = {"unclamped", "clamps"}  # nothing is projected, so there is nothing to look at
    left = {CosineHead: {*flat, "cosine", "above: cosine"}, EuclideanHead: flat}.get(
        type(head), set()
    )
    assert set(found.checks) == set(CHECKS) - left
    for name, check in found.checks.items():
        assert check.limit == CHECKS[name][0] and check.passed == (check.value <= check.limit)


def test_accuracy_falls_from_clean_to_nothing_as_the_budget_grows():
    found = checked(model(CosineHead(10.0)), shown(0.2, wrong=2), PATHS, BUDGET, count=9, batch=2)
    curve = list(found.budgets.values())
    assert list(found.budgets) == [f"{n}/255" for n in BUDGETS]
    assert curve[0] == pytest.approx(7 / 9, abs=1e-5) and curve[-1] == 0
    assert curve == sorted(curve, reverse=True)
    assert list(found.steps) == ["6", "12", "24"] and list(found.restarts) == ["1", "3"]


def test_only_so_many_pictures_are_audited():
    assert checked(model(CosineHead(10.0)), shown(0.2), PATHS, BUDGET, count=4, batch=2).images == 4


def test_restarts_are_named_as_many_as_there_were():
    budget = Budget(**vars(BUDGET) | {"restarts": 2})
    found = checked(model(CosineHead(10.0)), shown(0.2, n=3), PATHS, budget, count=3, batch=2)
    assert list(found.restarts)[0] == "2"


@pytest.mark.parametrize("suite", [BUDGET.suite, ("apgd_ce", "square"), ("square",)])
def test_a_quantised_models_gradient_is_found_missing_and_search_finds_what_it_hid(suite):
    budget = Budget(**vars(BUDGET) | {"eps": 0.2, "queries": 200, "suite": suite})
    found = checked(
        model(CosineHead(10.0), quantised=True), shown(0.1), PATHS, budget, count=9, batch=2
    )
    assert found.checks["zero gradients"].value == 1
    assert {"zero gradients", "gradient-free"} <= set(found.failed)
    assert found.checks["gradient-free"].value > 0.5


def test_a_model_that_hides_the_gradient_of_a_level_above_the_leaves_alone_is_caught_there():
    class Above(CosineHead):
        def logits(self, images, texts):
            leaves = len(texts) == len(PATHS)
            return super().logits(images if leaves else (8 * images).round() + 0 * images, texts)

    budget = Budget(**vars(BUDGET) | {"eps": 0.2, "queries": 200})
    found = checked(model(Above(10.0)), shown(0.1), PATHS, budget, count=9, batch=2)
    assert (
        found.checks["above: zero gradients"].value == 1
        and found.checks["above: gradient-free"].value > 0.3
    )
    assert found.failed and all(name.startswith("above: ") for name in found.failed)


@pytest.mark.parametrize(
    "paths", [[[0], [1], [2]], [[0, 0], [1, 0], [2, 0]]], ids=["leaves alone", "one root"]
)
def test_where_no_level_above_the_leaves_has_a_choice_none_is_audited(paths):
    texts = [torch.eye(3), torch.ones(1, 3)][: len(paths[0])]
    found = checked(
        Classifier(Colours(), CosineHead(10.0), texts),
        shown(0.2),
        torch.tensor(paths),
        BUDGET,
        count=9,
        batch=2,
    )
    assert not any(name.startswith("above: ") for name in found.checks) and found.failed == []


def test_a_gradient_that_is_no_number_counts_as_none():
    class Rooted(nn.Module):
        def forward(self, images):  # the root of 0 has no slope
            return images.mean((2, 3)) + 0 * (images - images.detach()).mean((2, 3)).sqrt()

    masked = Classifier(Rooted(), CosineHead(10.0), TEXTS)
    found = checked(masked, shown(0.1), PATHS, BUDGET, count=9, batch=2)
    assert found.checks["zero gradients"].value == 1


def test_a_model_at_the_rim_is_caught_by_its_clamps():
    head = PoincareHead(1.0, 50.0, 2.0, 1.0, 5.0)
    found = checked(model(head), shown(0.2), PATHS, BUDGET, count=9, batch=2)
    assert found.checks["clamps"].value == 1
    # The rim lies elsewhere in float64. Only the direction matters, and that has its gradient.
    assert found.failed == ["precision", "clamps"]


def test_texts_at_the_rim_are_seen_too():
    found = checked(
        model(PoincareHead(1.0, 1.5, 50.0, 1.0, 5.0)), shown(0.2), PATHS, BUDGET, count=9, batch=2
    )
    assert found.checks["clamps"].value == pytest.approx(3 / 5)  # the leaves, of five nodes


def test_a_model_whose_depth_is_hidden_by_the_rim_is_caught_by_the_surrogate_without_it():
    """Two texts in the only direction there is, told apart by depth; images beyond the rim, where
    the gradient ends.
    """
    head = PoincareHead(1.0, 10.0, 2.0, 1.0, 5.0, "free", image_norm=1.0)
    brightness = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 1, bias=False))
    nn.init.constant_(brightness[2].weight, 3**-0.5)
    hidden = Classifier(brightness, head, [expmap0(torch.tensor([[4.0], [3.0]]), 1.0)]).eval()
    grey = ImageSet(
        torch.full((27, 3, 8, 8), 52, dtype=torch.uint8), torch.zeros(27, dtype=torch.long)
    )
    found = checked(hidden, grey, torch.tensor([[0], [1]]), BUDGET, count=27, batch=7)
    assert found.checks["clamps"].value == 1 and {"unclamped", "clamps"} <= set(found.failed)
