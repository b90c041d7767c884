"""PGD for training: the whole batch together, images and texts (Madry et al., ICLR 2018)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hierclip.attacks.norms import NORMS
from hierclip.distributed import mean


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, without gradients of its weights; restore it afterwards."""
    modes = {part: part.training for part in module.modules()}
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for weight in trained:
            weight.requires_grad_(True)


def pgd(
    objective: Callable[[Tensor, Tensor | None], Tensor],
    images: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    generator: torch.Generator,
    momentum: float = 0.0,
    texts: Tensor | None = None,
    text_eps: float = 0.0,
    whole: int | None = None,
    own: slice = slice(None),
) -> tuple[Tensor, Tensor | None]:
    """Move images (N, 3, H, W) in [0, 1] by at most eps a pixel so as to raise `objective`.

    objective: a scalar function of the batch and of the perturbation of the texts, or None. With
    `momentum` a step follows the sign of the decaying sum of the gradients' signs. Where `text_eps`
    is above 0, a perturbation of the text embeddings `texts` (K, D) is found along with the
    images', from 0 and by at most text_eps an entry; it is returned too, else None. The images may
    be the rows `own` of a batch of `whole` images, for all of which the generator draws.
    """
    norm = NORMS["Linf"]
    shape = (whole or len(images), *images.shape[1:])
    uniform = torch.rand(shape, generator=generator, device=generator.device)[own]
    x = norm.start(images, eps, uniform.to(images.device))
    velocity = torch.zeros_like(images)
    text_delta = torch.zeros_like(texts) if texts is not None and text_eps else None
    for _ in range(steps):
        inputs = [v.requires_grad_(True) for v in (x, text_delta) if v is not None]
        gradients = torch.autograd.grad(objective(x, text_delta), inputs)
        velocity = momentum * velocity + gradients[0].sign()
        x = norm.project(x.detach() + step * velocity.sign(), images, eps)
        if text_delta is not None:
            moved = text_delta.detach() + text_eps * mean(gradients[1]).sign()
            text_delta = moved.clamp(-text_eps, text_eps)
    return x, text_delta
