import copy

import pytest
import torch
from torch import nn

from hierclip.losses import METHODS
from hierclip.params import OptimParams
from hierclip.train import TrainingError, finetune, fit, make_fabric, pretrain
from tests.conftest import Stripes

TEMPLATE = "a picture of a {}"
SHORT = {"steps": 5, "batch": 6, "warmup": 0.5, "checkpoint_every": 2}


@pytest.fixture
def fabric(params):
    return make_fabric(params.model)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "new" / "checkpoint.ckpt"


class Regression:
    """A small model with everything that a checkpoint has to keep: momenta, running statistics, a schedule."""

    def __init__(self, fabric, checkpoint, steps=8, stop=None, config="", scale=1.0, spoil=None):
        torch.manual_seed(0)
        self.seen: list[int] = []
        self.stop, self.spoil = stop, spoil
        module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        with torch.no_grad():
            module[0].weight.mul_(scale)
        self.module, self.optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=0.25))
        optim = OptimParams(steps=steps, batch=1, weight_decay=0, warmup=0.25, checkpoint_every=2)
        self.run = lambda: fit(
            fabric, self.module, self.optimizer, self.loss_at, optim, checkpoint, config, "regression"
        )

    def loss_at(self, step):
        if step == self.stop:
            raise KeyboardInterrupt
        self.seen.append(step)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (self.module(x)[:, 0] - x.sum(1)).square().mean()
        return loss * float("nan") if step == self.spoil else loss


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def interrupted(fabric, checkpoint, **choices) -> None:
    with pytest.raises(KeyboardInterrupt):
        Regression(fabric, checkpoint, stop=5, **choices).run()
    assert checkpoint.exists()


def test_a_stopped_run_goes_on_as_if_it_had_not_been(fabric, checkpoint, tmp_path):
    whole = Regression(fabric, tmp_path / "other.ckpt")
    losses = whole.run()
    interrupted(fabric, checkpoint)
    rest = Regression(fabric, checkpoint)
    assert rest.run() == losses
    assert (whole.seen, rest.seen) == (list(range(8)), [4, 5, 6, 7])
    assert same(whole.module, rest.module)


def test_the_checkpoint_goes_when_training_is_through(fabric, checkpoint):
    interrupted(fabric, checkpoint)
    Regression(fabric, checkpoint).run()
    assert list(checkpoint.parent.iterdir()) == []


@pytest.mark.parametrize("change", [{"config": "other"}, {"scale": 2.0}])
def test_a_checkpoint_of_another_configuration_or_start_is_left_unread(fabric, checkpoint, tmp_path, change):
    interrupted(fabric, checkpoint)
    other, fresh = Regression(fabric, checkpoint, **change), Regression(fabric, tmp_path / "other.ckpt", **change)
    assert other.run() == fresh.run()
    assert other.seen == list(range(8)) and same(other.module, fresh.module)


def test_a_loss_that_is_no_number_is_refused_with_step_and_learning_rate(fabric, checkpoint):
    with pytest.raises(TrainingError, match=r"^regression: the loss is nan at step 3; .*0\.25"):
        Regression(fabric, checkpoint, spoil=3).run()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_run_may_be_as_short_as_a_step(fabric, checkpoint, steps):
    assert len(Regression(fabric, checkpoint, steps=steps).run()) == steps


def tune(fabric, method, params, backbone, tree, checkpoint, dataset=None, **choices):
    finetune_params = params.finetune.model_copy(update=SHORT | choices)
    return finetune(
        fabric, METHODS[method], finetune_params, backbone, dataset or Stripes(), tree, TEMPLATE, 0, checkpoint
    )


def changes(fabric, method, params, backbone, tree, checkpoint) -> set[str]:
    """Names of what fine-tuning changed in the model."""
    before = copy.deepcopy(backbone.clip.state_dict())
    _, losses = tune(fabric, method, params, backbone, tree, checkpoint)
    assert len(losses) == (0 if method == "clip" else SHORT["steps"])
    return {name for name, value in backbone.clip.state_dict().items() if not torch.equal(value, before[name])}


def test_clip_stays_as_it_is(fabric, params, backbone, tree, checkpoint):
    assert changes(fabric, "clip", params, backbone, tree, checkpoint) == set()


@pytest.mark.parametrize(("method", "text"), [("tecoa", set()), ("hier", {"text_projection"})])
def test_finetuning_changes_the_image_encoder_and_only_the_hierarchy_the_text_projection(
    fabric, params, backbone, tree, checkpoint, method, text
):
    visual = {name for name, _ in backbone.clip.named_parameters() if name.startswith("visual.")}
    changed = changes(fabric, method, params, backbone, tree, checkpoint)
    assert changed == visual | text  # weights alone: BatchNorm's statistics are no parameters


def test_a_finetuned_model_is_in_evaluation_mode_and_wants_no_gradient(fabric, params, backbone, tree, checkpoint):
    head, _ = tune(fabric, "hier", params, backbone, tree, checkpoint)
    assert head == METHODS["hier"].head(params.finetune, 1.0)
    assert not any(part.training for part in backbone.clip.modules())
    assert not any(weight.requires_grad for weight in backbone.clip.parameters())


def test_stopped_finetuning_goes_on_as_if_it_had_not_been(fabric, params, backbone, tree, checkpoint, tmp_path):
    class Stopping(Stripes):
        def batch(self, places, size, seed, step):
            if step == 3:
                raise KeyboardInterrupt
            return super().batch(places, size, seed, step)

    whole, stopped, rest = backbone, copy.deepcopy(backbone), copy.deepcopy(backbone)
    _, losses = tune(fabric, "hier", params, whole, tree, tmp_path / "other.ckpt")
    with pytest.raises(KeyboardInterrupt):
        tune(fabric, "hier", params, stopped, tree, checkpoint, Stopping())
    assert tune(fabric, "hier", params, rest, tree, checkpoint)[1] == losses
    assert same(whole.clip, rest.clip)


@pytest.mark.parametrize("method", ["tecoa", "hier"])
def test_finetuning_learns_from_attacked_pictures(fabric, params, backbone, tree, checkpoint, tmp_path, method):
    strong, weak = (params.finetune.attack.model_copy(update={"eps": eps / 255, "step": eps / 255}) for eps in (16, 0))
    hard = tune(fabric, method, params, copy.deepcopy(backbone), tree, checkpoint, attack=strong)[1]
    easy = tune(fabric, method, params, backbone, tree, tmp_path / "other.ckpt", attack=weak)[1]
    assert hard[0] > easy[0]


def test_pretraining_lowers_the_loss_and_changes_both_towers(fabric, params, backbone, tree, checkpoint):
    before = copy.deepcopy(backbone.clip.state_dict())
    few = params.pretrain.model_copy(update=SHORT | {"steps": 15, "batch": 16, "warmup": 0.2, "lr": 2e-3})
    losses = pretrain(fabric, few, backbone, Stripes(), tree, TEMPLATE, checkpoint)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    changed = {name for name, value in backbone.clip.state_dict().items() if not torch.equal(value, before[name])}
    assert {"visual.conv1.weight", "visual.bn1.running_mean", "token_embedding.weight", "text_projection"} <= changed
    assert backbone.clip.logit_scale.exp() <= 100.001 and not backbone.clip.training
