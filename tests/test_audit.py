"""The audit passes an honest model and catches one that hides its gradient."""

import pytest
import torch
from torch import nn

from hierclip.attacks import Budget, frozen
from hierclip.data import ImageSet
from hierclip.evaluation import LevelMatrix, gradient_masking_checks
from hierclip.evaluation.masking import BUDGETS, CHECKS, FLAGS, model_flags
from hierclip.hyperbolic import expmap0
from hierclip.models import (
    Classifier,
    CosineHead,
    EuclideanHead,
    ImageEncoder,
    PoincareHead,
    open_backbone,
)
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


# Flags, randomised models and surrogates


class Encoder(Colours):
    """The mean of each colour, as `change` (embeddings, images, the module) alters it."""

    def __init__(self, change=lambda embeddings, images, module: embeddings):
        super().__init__()
        self.change = change
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        return self.change(super().forward(images), images, self)


def rounded(values, step):
    """Round values, but leave their gradient."""
    return values + ((values / step).round() * step - values).detach()


def count_a_call(embeddings, images, module):
    module.calls = module.calls + 1  # another tensor
    return embeddings


def go_to_training(embeddings, images, module):
    module.train()
    return embeddings


def purify(embeddings, images, module):
    """Move the image by a gradient first, as a purifying defence does."""
    with torch.enable_grad():
        x = images.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(module.mix(x.mean((2, 3))).square().sum(), x)
    return module.mix((images - gradient).mean((2, 3)))


class Softmax(CosineHead):
    def logits(self, images, texts):
        return super().logits(images, texts).softmax(1)


# By what a flag catches: how embeddings are altered, and the flags that are above their limits.
RED = torch.eye(3)[0]
CHANGES = {
    "noise": (lambda e, *_: e + 0.05 * torch.randn_like(e), {"random"}),
    "batch": (lambda e, *_: e + 0.1 * len(e) * RED.to(e), {"batch size"}),
    "row": (lambda e, *_: e + 0.1 * RED * torch.arange(len(e))[:, None], {"batch size", "order"}),
    "float32": (lambda e, *_: rounded(e, 0.125) if e.dtype == torch.float32 else e, {"precision"}),
    "detached": (lambda e, *_: e.detach(), {"no gradient"}),
    "a count": (count_a_call, {"optimisation"}),
    "training": (go_to_training, {"optimisation"}),
    "purified": (purify, {"optimisation"}),
}


def flagged(classifier, images=None):
    """Return the flags of a classifier, and the names of those above their limits."""
    images = shown(0.2).floats() if images is None else images
    with frozen(classifier):
        flags = model_flags(classifier, images, [0, 1])
    return flags, {name for name, value in flags.items() if not value <= FLAGS[name][0]}


def altered(change, head=None) -> Classifier:
    return Classifier(Encoder(change), head or CosineHead(10.0), TEXTS).eval()


@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_is_raised_by_what_it_looks_for_and_by_nothing_else(name):
    change, raised = CHANGES[name]
    flags, above = flagged(altered(change))
    assert above == raised
    hidden = {"batch size", "order", "precision"} if name == "noise" else set()
    assert set(flags) == set(FLAGS) - hidden - {"none right"}


def test_probabilities_are_told_from_logits_by_their_share_of_images():
    flags, above = flagged(model(Softmax(10.0)))
    assert above == {"softmax"} and flags["softmax"] == 1


def test_a_change_is_a_share_of_the_range_of_logits():
    """From some call on logits are 0.3 more, where those of an image are 4 apart at most."""
    calls = []

    def later_more(images):
        calls.append(len(images))
        return torch.tensor([[0.0, 1, 4], [2, 2, 2]]) + 0.3 * (len(calls) > 3)

    flags, _ = flagged(Logits(later_more), torch.rand(2, 3, 2, 2))
    assert flags["random"] == pytest.approx(0.3 / 4)


@pytest.mark.parametrize("name", ["hierclip-tiny", "RN50"])
def test_rounding_in_a_real_tower_raises_no_flag(name):
    torch.manual_seed(0)
    backbone = open_backbone(name, None)
    encoder = ImageEncoder(backbone, fold=True)
    texts = torch.randn(10, backbone.config["embed_dim"])
    classifier = Classifier(encoder, CosineHead(100.0), [texts / texts.norm(dim=1, keepdim=True)])
    size = backbone.config["vision_cfg"]["image_size"]
    with frozen(classifier):
        flags = model_flags(classifier, torch.rand(3, 3, size, size), [0])
    assert set(flags) == set(FLAGS) - {"none right"} and max(flags.values()) < 1e-4


def test_a_randomised_model_is_told_apart_from_a_masked_one():
    torch.manual_seed(0)
    noisy, hidden = altered(CHANGES["noise"][0]), model(CosineHead(10.0), quantised=True)
    budget = Budget(**vars(BUDGET) | {"eps": 0.2, "eot": 20, "restarts": 1, "queries": 60})
    randomised, masked = (
        checked(each, shown(0.1), PATHS, budget, count=9, batch=9) for each in (noisy, hidden)
    )
    assert randomised.failed == ["random"]
    assert {"zero gradients", "gradient-free"} <= set(masked.failed)
    assert masked.checks["random"].value == 0


def test_saturated_probabilities_are_masked_and_not_randomised():
    found = checked(model(Softmax(1000.0)), shown(0.4), PATHS, BUDGET, count=9, batch=9)
    assert {"softmax", "zero gradients"} <= set(found.failed) and found.checks["random"].passed


def test_a_surrogate_uncovers_what_a_quantised_model_hides():
    """The model is as before, the attack follows the gradient that was rounded away."""
    budget = Budget(**vars(BUDGET) | {"eps": 0.2, "queries": 200})
    hidden = model(CosineHead(10.0), quantised=True)
    hidden.surrogate = model(CosineHead(10.0))
    found = checked(hidden, shown(0.1), PATHS, budget, count=9, batch=9)
    assert found.checks["zero gradients"].value == found.checks["gradient-free"].value == 0
    matrix = LevelMatrix(hidden, shown(0.1), PATHS, budget, seed=0, batch=9)
    nodes = matrix.attack(matrix.goals[0])["nodes"][:, 0]
    assert (nodes != matrix.images.labels.numpy()).all()
    del hidden.surrogate
    matrix = LevelMatrix(hidden, shown(0.1), PATHS, budget, seed=0, batch=9)
    nodes = matrix.attack(matrix.goals[0])["nodes"][:, 0]
    assert (nodes == matrix.images.labels.numpy()).any()


def test_a_model_whose_gradient_is_off_is_attacked_by_search_and_fails_its_checks():
    budget = Budget(**vars(BUDGET) | {"eps": 0.2, "queries": 200})
    found = checked(altered(CHANGES["detached"][0]), shown(0.1), PATHS, budget, count=9, batch=9)
    assert {"no gradient", "zero gradients", "gradient-free"} <= set(found.failed)
    assert found.checks["no gradient"].value == found.checks["zero gradients"].value == 1


class Logits(nn.Module):
    """A classifier without a head or texts: logits are those of a function of images."""

    head, text_points, device = None, (), torch.device("cpu")

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images, levels=None):
        return [self.function(images) for level in (0, 1) if levels is None or level in levels]


@pytest.mark.parametrize("weights", [True, False])
def test_a_model_of_plain_logits_has_the_checks_that_need_no_head(weights):
    function = Colours() if weights else lambda images: images.mean((2, 3))
    found = checked(Logits(function), shown(0.2), torch.arange(3)[:, None], BUDGET, 9, 9)
    left = {"unclamped", "cosine", "clamps", "float64", "precision"}
    left -= {"float64", "precision"} if weights else set()
    assert set(found.checks) == {name for name in CHECKS if not name.startswith("above")} - left
    assert found.failed == []


def test_no_float64_copy_is_made_of_what_cannot_be_copied_or_reads_float32_alone():
    for function in (lambda images: images.float(), lambda images: images):
        classifier = Logits(nn.Sequential(Colours()))
        classifier.function.register_forward_pre_hook(lambda _, given, f=function: f(given[0]))
        flags, _ = flagged(classifier)
        assert ("precision" in flags) == (function(torch.ones(1).double()).dtype == torch.float64)
    classifier.uncopied = (part for part in ())  # a generator cannot be copied
    assert "precision" not in flagged(classifier)[0]


def test_checks_on_images_that_are_all_wrong_fail_for_there_was_nothing_to_break():
    images = shown(0.2)
    images = ImageSet(images.pixels, (images.labels + 1) % 3)
    found = checked(model(CosineHead(10.0)), images, PATHS, BUDGET, count=9, batch=2)
    assert "none right" in found.failed and found.budgets["0/255"] == 0
