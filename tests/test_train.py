import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from hierclip import training
from hierclip.config import OptimParams, load_params
from hierclip.data.tasks import Task
from hierclip.distributed import make_fabric
from hierclip.errors import HierclipError
from hierclip.losses import OBJECTIVES, Objective, make_head
from hierclip.models import CosineHead, Towers
from hierclip.training import Training, TrainingError, fit, loss_batch, set_up
from hierclip.trees import TreeError, tree_from_graph
from tests.conftest import LEAVES, ROOT, Stripes, finetune, notebook_functions, sizes_graph
from tests.test_writing import held

TEMPLATE = "a picture of a {}"
pretrain = notebook_functions("30_pretrain")["pretrain"]
SHORT = {"batch": 6, "warmup": 0.5, "checkpoint_every": 2}
METHOD = load_params(ROOT / "params.yaml").method
TRAINED = [name for name, method in METHOD.items() if method.loss != "none"]


@pytest.fixture
def fabric(params):
    return make_fabric(params.model)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "new" / "checkpoint.ckpt"


class Regression:
    """A small model with everything that a checkpoint has to keep: momenta, running statistics, a
    schedule.
    """

    def __init__(self, fabric, checkpoint, steps=8, stop=None, config="", scale=1.0, **spoil):
        torch.manual_seed(0)
        self.seen: list[int] = []
        self.stop, self.spoil, self.root = stop, spoil.get("spoil"), spoil.get("root")
        module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        with torch.no_grad():
            module[0].weight.mul_(scale)
        self.module, optimizer = fabric.setup(
            module, torch.optim.AdamW(module.parameters(), lr=0.25)
        )
        optim = OptimParams(batch=1, weight_decay=0, warmup=0.25, checkpoint_every=2)
        work = Training(fabric, self.module, optimizer, optim, steps, "regression", config)
        self.run = lambda: fit(work, self.step_loss, checkpoint)

    def step_loss(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        self.seen.append(step)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (self.module(x)[:, 0] - x.sum(1)).square().mean()
        if step == self.root:
            loss = loss + (loss - loss).sqrt()
        return loss * float("nan") if step == self.spoil else loss, {"step": float(step)}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def interrupted(fabric, checkpoint, **choices) -> None:
    with pytest.raises(KeyboardInterrupt):
        Regression(fabric, checkpoint, stop=5, **choices).run()
    assert checkpoint.exists()


def test_a_stopped_run_goes_on_as_if_it_had_not_been(fabric, checkpoint, tmp_path):
    whole = Regression(fabric, tmp_path / "other.ckpt")
    history = whole.run()
    assert [entry["step"] for entry in history] == list(
        range(8)
    )  # what a loss logs is kept with it
    interrupted(fabric, checkpoint)
    rest = Regression(fabric, checkpoint)
    assert rest.run() == history
    assert (whole.seen, rest.seen) == (list(range(8)), [4, 5, 6, 7])
    assert same(whole.module, rest.module)


def test_the_checkpoint_goes_when_training_is_through(fabric, checkpoint):
    interrupted(fabric, checkpoint)
    Regression(fabric, checkpoint).run()
    assert list(checkpoint.parent.iterdir()) == []


def test_a_training_that_another_process_is_at_is_refused_before_its_first_step(fabric, checkpoint):
    second = Regression(fabric, checkpoint)
    with held(checkpoint), pytest.raises(HierclipError, match="another process is at work on it"):
        second.run()
    assert second.seen == []


@pytest.mark.parametrize("change", [{"config": "other"}, {"scale": 2.0}, {"steps": 9}])
def test_a_checkpoint_of_another_configuration_or_start_is_left_unread(
    fabric, checkpoint, tmp_path, change
):
    interrupted(fabric, checkpoint)
    other, fresh = (
        Regression(fabric, checkpoint, **change),
        Regression(fabric, tmp_path / "other.ckpt", **change),
    )
    assert other.run() == fresh.run()
    assert other.seen == list(range(change.get("steps", 8))) and same(other.module, fresh.module)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint"]
)
def test_a_damaged_checkpoint_is_named_and_training_starts_anew(
    fabric, checkpoint, tmp_path, damage
):
    interrupted(fabric, checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    fresh, again = Regression(fabric, tmp_path / "other.ckpt"), Regression(fabric, checkpoint)
    said = f"^{checkpoint} cannot be read .*; training starts from the beginning$"
    with pytest.warns(UserWarning, match=said) as warned:
        history = again.run()
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert history == fresh.run() and same(again.module, fresh.module)
    assert not checkpoint.exists()


def test_a_loss_that_is_no_number_is_refused_with_step_and_learning_rate(fabric, checkpoint):
    with pytest.raises(TrainingError, match=r"^regression: loss not finite at step 3; .*0\.25"):
        Regression(fabric, checkpoint, spoil=3).run()


@pytest.mark.parametrize("step", [3, 7])  # before a checkpoint, and the last
def test_weights_that_become_no_number_are_refused_and_not_kept(fabric, checkpoint, step):
    """A finite loss may have a gradient that is none: that of a root at 0."""
    run = Regression(fabric, checkpoint, root=step)
    words = f"^regression: 0.weight, 0.bias, .* not finite at step {step}; lower the learning rate"
    with pytest.raises(TrainingError, match=words):
        run.run()
    kept = torch.load(checkpoint, weights_only=True)["module"] if checkpoint.exists() else {}
    assert all(value.isfinite().all() for value in kept.values())


def test_a_run_that_goes_on_from_weights_that_are_no_numbers_says_what_to_remove(
    fabric, checkpoint
):
    interrupted(fabric, checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    content["module"]["2.bias"].fill_(torch.nan)
    torch.save(content, checkpoint)
    words = f"^regression: loss not finite at step 4; .*, or remove {checkpoint}"
    with pytest.raises(TrainingError, match=words):
        Regression(fabric, checkpoint).run()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_run_may_be_as_short_as_a_step(fabric, checkpoint, steps):
    assert len(Regression(fabric, checkpoint, steps=steps).run()) == steps


def tune(fabric, method, params, backbone, trees, checkpoint, dataset=None, steps=2, **choices):
    """Fine-tunes for `steps` steps."""
    method = METHOD.get(method, method)
    few = params.finetune.model_copy(update=SHORT | {"steps": steps} | choices)
    return finetune(
        fabric, method, few, backbone, dataset or Stripes(), trees, TEMPLATE, 0, checkpoint
    )


class Stopping(Stripes):
    """Interrupts the training at a step."""

    def batch(self, places, size, seed, step, rows=slice(None)):
        if step == 3:
            raise KeyboardInterrupt
        return super().batch(places, size, seed, step, rows)


def changed(backbone, before) -> set[str]:
    """Names of what is not as it was."""
    return {
        name
        for name, value in backbone.clip.state_dict().items()
        if not torch.equal(value, before[name])
    }


@pytest.fixture
def towers(monkeypatch):
    """All towers that fine-tuning makes, the original ones first, each with what it held and gave
    for images then.
    """
    made, images = [], torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    class Watched(Towers):
        def __init__(self, *arguments, **choices):
            super().__init__(*arguments, **choices)
            with torch.no_grad():
                made.append((self, copy.deepcopy(self.state_dict()), self.eval()(images)))

    monkeypatch.setattr(training, "Towers", Watched)
    return made


@pytest.fixture
def passes(monkeypatch):
    """How often images go through the model in training, with a graph to take gradients in."""
    counted, real = [], Towers.forward

    def forward(self, images, local=False):
        # Not the original's, which Fabric does not wrap, nor those of `towers`.
        if self.precision is nullcontext and len(images) == SHORT["batch"]:
            counted.append(torch.is_grad_enabled())
        return real(self, images, local)

    monkeypatch.setattr(Towers, "forward", forward)
    return counted


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_changes_the_image_encoder_alone_and_the_hierarchy_the_text_projection_too(
    fabric, params, backbone, forest, checkpoint, towers, passes, name
):
    before = copy.deepcopy(backbone.clip.state_dict())
    visual = {key for key, _ in backbone.clip.named_parameters() if key.startswith("visual.")}
    method = METHOD[name]
    _, history = tune(fabric, name, params, backbone, forest, checkpoint)
    text = {"text_projection"} if method.loss == "hier" else set()
    assert (
        changed(backbone, before) == visual | text
    )  # weights alone: BatchNorm's statistics are no parameters
    (original, held, first), (trained, _, start) = towers
    assert all(torch.equal(value, held[key]) for key, value in original.state_dict().items())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in original.modules())
    for one, other in zip(
        first, start, strict=True
    ):  # both begin alike, but that the original's BatchNorm is folded
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert same(trained.encoder.visual, backbone.clip.visual)
    seen_clean = name in ("pmg_aft", "tga_zsr")  # they see the clean images as well
    assert len(history) == 2 and len(passes) == 2 * (method.attack.steps + 1 + seen_clean)
    assert all(passes)
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history)


def test_clip_is_read_at_its_own_scale(backbone):
    head = make_head(METHOD["clip"], backbone.logit_scale, 1.0, 1.0)
    assert head == CosineHead(pytest.approx(backbone.clip.logit_scale.exp().item()))


@pytest.mark.parametrize("name", ["tecoa", "hier", "clip"])
def test_trees_with_their_leaves_in_another_order_are_refused(
    fabric, params, backbone, tree, checkpoint, name
):
    trees = [tree, tree_from_graph(sizes_graph(), "sizes", LEAVES[::-1])]
    with pytest.raises(TreeError, match="same leaves in the same order; given tiny, sizes"):
        tune(fabric, name, params, backbone, trees, checkpoint)


def test_a_finetuned_model_is_in_evaluation_mode_and_wants_no_gradient(
    fabric, params, backbone, forest, checkpoint
):
    tune(fabric, "hier", params, backbone, forest, checkpoint)
    assert not any(part.training for part in backbone.clip.modules())
    assert not any(weight.requires_grad for weight in backbone.clip.parameters())


def test_typical_norms_are_those_of_the_first_images_and_of_all_texts_before_training(
    fabric, params, backbone, tree, checkpoint
):
    images, _ = Stripes().batch(torch.arange(5), SHORT["batch"], 0, 0)
    with torch.no_grad():
        embeddings, _, texts = Towers(backbone, [tree], TEMPLATE)(images)
    typical = [float(v.norm(dim=1).mean()) for v in (embeddings, texts)]
    head, _ = tune(fabric, "hier", params, backbone, [tree], checkpoint)
    assert [head.image_norm, head.text_norm] == pytest.approx(typical, rel=1e-5)
    assert (head.tau, head.norms) == (METHOD["hier"].tau, METHOD["hier"].norms)


@pytest.mark.parametrize("choice", ["universal", "leaf", "level"])
def test_the_attack_and_the_loss_get_the_levels_of_the_perturbation(
    fabric, params, backbone, forest, checkpoint, monkeypatch, choice
):
    real, seen = OBJECTIVES["hier"], []

    def watched(name):
        def objective(context, perturbation, method):
            seen.append((name, perturbation.levels, perturbation.text_delta is not None))
            return getattr(real, name)(context, perturbation, method)

        return objective

    monkeypatch.setitem(OBJECTIVES, "hier", Objective(watched("loss"), watched("attack")))
    method = METHOD["hier"].model_copy(update={"perturbation": choice})
    tune(fabric, method, params, backbone, forest, checkpoint, steps=1)
    wanted = {
        "universal": [(None, None)],
        "leaf": [((0,), None)],
        "level": [((0,), (0,)), ((1,), (1,)), ((2,), (2,))],
    }[choice]
    steps = method.attack.steps
    expected = [
        [("attack", attack, True)] * steps + [("loss", loss, True)] for attack, loss in wanted
    ]
    assert seen == sum(expected, [])


def watched_deltas(monkeypatch) -> list:
    """The perturbations of the texts that the losses of the steps to come will see."""
    real, deltas = OBJECTIVES["hier"], []

    def loss(context, perturbation, method):
        deltas.append(perturbation.text_delta)
        return real.loss(context, perturbation, method)

    monkeypatch.setitem(OBJECTIVES, "hier", Objective(loss, real.attack))
    return deltas


def test_texts_are_moved_only_where_they_have_a_budget(
    fabric, params, backbone, tree, checkpoint, monkeypatch
):
    text_deltas = watched_deltas(monkeypatch)
    for eps in (0.0, 0.01):
        method = METHOD["hier"].model_copy(update={"text_eps": eps})
        tune(fabric, method, params, copy.deepcopy(backbone), [tree], checkpoint, steps=1)
    assert text_deltas[0] is None and text_deltas[1].shape == (10, 64)
    assert text_deltas[1].any() and text_deltas[1].abs().max() <= 0.01


@pytest.mark.parametrize(
    "method", [METHOD["hier"], METHOD["match"]], ids=["hierarchical", "matching"]
)
def test_stopped_finetuning_goes_on_as_if_it_had_not_been(
    fabric, params, backbone, forest, checkpoint, tmp_path, method
):
    whole, stopped, rest = backbone, copy.deepcopy(backbone), copy.deepcopy(backbone)
    head, history = tune(fabric, method, params, whole, forest, tmp_path / "other.ckpt", steps=5)
    with pytest.raises(KeyboardInterrupt):
        tune(fabric, method, params, stopped, forest, checkpoint, Stopping(), steps=5)
    assert checkpoint.exists()
    assert tune(fabric, method, params, rest, forest, checkpoint, steps=5) == (head, history)
    assert same(whole.clip, rest.clip)


def test_a_checkpoint_of_other_pictures_is_left_unread(
    fabric, params, backbone, forest, checkpoint, tmp_path
):
    class Darker(Stripes):
        def batch(self, *asked):
            images, labels = super().batch(*asked)
            return images / 2, labels

    stopped, resumed, whole = backbone, copy.deepcopy(backbone), copy.deepcopy(backbone)
    with pytest.raises(KeyboardInterrupt):
        tune(fabric, "tecoa", params, stopped, forest, checkpoint, Stopping(), steps=5)
    assert checkpoint.exists()
    darker = tune(fabric, "tecoa", params, resumed, forest, checkpoint, Darker(), steps=5)
    assert darker == tune(
        fabric, "tecoa", params, whole, forest, tmp_path / "other.ckpt", Darker(), steps=5
    )


@pytest.mark.parametrize("part", ["token_embedding.weight", "logit_scale", "visual.conv1.weight"])
def test_what_a_checkpoint_rests_on_has_every_weight_of_the_model(
    fabric, params, backbone, forest, part
):
    """Those that training leaves alone too; and it is the same in another process: no object's
    address is in it.
    """
    few = params.finetune.model_copy(update=SHORT | {"steps": 2})

    def key() -> str:
        made = copy.deepcopy(backbone)
        task = Task("seen", Stripes(), forest, TEMPLATE)
        return set_up(fabric, METHOD["hier"], few, made, task, 0).key

    before = key()
    assert key() == before
    backbone.clip.state_dict()[part].mul_(1.5)
    assert key() != before


def test_what_a_checkpoint_rests_on_prints_without_addresses(
    fabric, params, backbone, forest, checkpoint, monkeypatch
):
    told = []
    monkeypatch.setattr(training, "cache_key", lambda *parts: told.extend(map(repr, parts)) or "")
    monkeypatch.setattr(training, "fingerprint", lambda *parts: told.extend(map(repr, parts)) or "")
    tune(fabric, "hier", params, backbone, forest, checkpoint)
    assert told and not any(" at 0x" in text for text in told)


def test_under_bf16_towers_see_pixels_as_they_are_and_the_ball_computes_in_float32(
    params, backbone, forest, checkpoint, monkeypatch
):
    seen, stem, real = [], [], Towers.forward

    def forward(self, images, local=False):
        out = real(self, images, local)
        if self.precision is nullcontext:
            seen.extend(part.dtype for part in (images, *out))
        return out

    monkeypatch.setattr(Towers, "forward", forward)
    backbone.clip.visual.conv1.register_forward_hook(lambda *got: stem.append(got[2].dtype))
    half = make_fabric(params.model.model_copy(update={"precision": "bf16-mixed"}))
    history = tune(half, "hier", params, backbone, forest, checkpoint)[1]
    assert set(stem) == {torch.bfloat16}  # the original model's towers too
    assert set(seen) == {torch.float32}
    assert all(torch.isfinite(torch.tensor(step["loss"])) for step in history)


@pytest.mark.parametrize("name", ["tecoa", "fare", "hier"])
def test_finetuning_learns_from_attacked_pictures(fabric, params, backbone, tree, checkpoint, name):
    strong = METHOD[name].attack.model_copy(update={"step": 16 / 255})
    method = METHOD[name].model_copy(update={"attack": strong})
    hard = tune(
        fabric, method, params, copy.deepcopy(backbone), [tree], checkpoint, steps=1, eps=16 / 255
    )[1]
    easy = tune(fabric, method, params, backbone, [tree], checkpoint, steps=1, eps=0.0)[1]
    assert hard[0]["loss"] > easy[0]["loss"]


def test_pretraining_lowers_the_loss_and_changes_both_towers(
    fabric, params, backbone, forest, checkpoint
):
    before = copy.deepcopy(backbone.clip.state_dict())
    few = params.pretrain.model_copy(
        update=SHORT | {"steps": 15, "batch": 16, "warmup": 0.2, "lr": 2e-3}
    )
    history = pretrain(fabric, few, backbone, Task("all", Stripes(), forest, TEMPLATE), checkpoint)
    losses = [entry["loss"] for entry in history]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    wanted = {
        "visual.conv1.weight",
        "visual.bn1.running_mean",
        "token_embedding.weight",
        "text_projection",
    }
    assert wanted <= changed(backbone, before)
    assert backbone.clip.logit_scale.exp() <= 100.001 and not backbone.clip.training


def test_pretraining_weighs_the_levels_of_all_trees_alike_beside_the_leaves(
    fabric, params, backbone, forest, checkpoint
):
    few = params.pretrain.model_copy(
        update=SHORT | {"steps": 1, "batch": 16, "leaf_caption_prob": 0.4}
    )
    images, labels = Stripes().batch(torch.arange(5), 16, few.seed, 0)
    clip, total = copy.deepcopy(backbone.clip).train(), 0.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.no_grad():
        seen = clip.encode_image((images - mean) / std, normalize=True)
        for k, level, weight in ((0, 0, 0.4), (0, 1, 0.2), (0, 2, 0.2), (1, 1, 0.2)):
            prompts = [TEMPLATE.format(node.name) for node in forest[k].levels[level]]
            said = clip.encode_text(backbone.tokenizer(prompts), normalize=True)
            logits = clip.logit_scale.exp() * seen @ said.T
            own = torch.from_numpy(forest[k].paths)[labels, level]
            total -= weight * logits.log_softmax(1)[torch.arange(16), own].mean().item()
    history = pretrain(fabric, few, backbone, Task("all", Stripes(), forest, TEMPLATE), checkpoint)
    assert history[0]["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("batch", "accumulate", "processes"), [(6, 1, 4), (6, 4, 1), (12, 2, 4)])
def test_a_batch_that_cannot_be_shared_out_is_refused(
    params, monkeypatch, batch, accumulate, processes
):
    monkeypatch.setattr(training, "world", lambda: processes)
    settings = params.finetune.model_copy(update={"batch": batch, "accumulate": accumulate})
    among = f"{accumulate} parts and {processes} processes"
    message = f"^a batch of {batch} cannot be shared out evenly among {among}$"
    with pytest.raises(TrainingError, match=message):
        loss_batch(settings)
