"""What one model's adversarial images do to another model."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import pandas as pd
import torch
from torch import Tensor

from hierclip.attacks import AttackGoal, Budget, frozen
from hierclip.data import Pictures
from hierclip.evaluate.matrix import attacked
from hierclip.model import Classifier
from hierclip.progress import progress


@torch.no_grad()
def _stand(classifier: Classifier, images: Tensor, labels: Tensor, aim: AttackGoal, batch: int) -> float:
    """The share of images on which an aim is not reached."""
    logits = [classifier(x.to(classifier.device)) for x in images.split(batch)]
    nodes = torch.stack([torch.cat(level).argmax(1).cpu() for level in zip(*logits, strict=True)], dim=1)
    return float((~aim.is_reached(nodes, labels)).float().mean())


def transfer(
    classifiers: Mapping[str, Classifier],
    pictures: Pictures,
    aims: list[AttackGoal],
    budget: Budget,
    *,
    seed: int,
    batch: int,
) -> pd.DataFrame:
    """For each aim and pair of models, the share of pictures on which `target` stands where `source` was attacked.

    Attacks do not stop where they succeed: they look for the source's worst point. The models' classifiers are over the
    same tree; labels of the pictures are its leaves. Columns `aim`, `source`, `target`, `stands`; `source` "clean" has
    the images as they are.
    """
    images, labels, rows = pictures.floats(), pictures.labels, []
    budget = replace(
        budget, stop_margin=inf
    )  # stopped at the source's own boundary, images would hardly reach another's
    for aim in progress(aims, "transfer"):
        sources = {"clean": images}
        for name, classifier in classifiers.items():
            with frozen(classifier):
                sources[name] = attacked(classifier, images, labels, aim, budget, seed, batch)[0]
        for source, moved in sources.items():
            for target, classifier in classifiers.items():
                rows.append((aim.name, source, target, _stand(classifier, moved, labels, aim, batch)))
    return pd.DataFrame(rows, columns=["aim", "source", "target", "stands"])
