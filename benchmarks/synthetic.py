"""Trees, texts and images of any size, made of random numbers: what cost grows with depends on no
image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hierclip.config import HierParams
from hierclip.losses import Context, Perturbation, make_nodes
from hierclip.losses.hierarchical import hierarchical, hita
from hierclip.losses.levels import Nodes
from hierclip.models import PoincareHead


@dataclass(frozen=True)
class Forest:
    """Trees over the same leaves. paths: by tree, (leaves, L + 1). nodes: by tree."""

    paths: list[Tensor]
    nodes: list[Nodes]

    @property
    def all_paths(self) -> Tensor:
        """(leaves, 1 + T L): the levels of all trees, tree by tree, the leaves once."""
        return torch.cat([self.paths[0], *(paths[:, 1:] for paths in self.paths[1:])], dim=1)


def make_forest(leaves: int, levels: int, trees: int) -> Forest:
    """Make trees of which every level above the leaves has half as many nodes as the one below, two
    at least.
    """
    generator = torch.Generator().manual_seed(0)
    paths, nodes = [], []
    for _ in range(trees):
        order = torch.randperm(leaves, generator=generator)
        columns, parents, size = [torch.arange(leaves)], [], leaves
        for _ in range(levels):
            above = max(2, size // 2)
            parents.append((torch.arange(size) * above // size).tolist())
            columns.append(torch.tensor(parents[-1])[columns[-1]])
            size = above
        paths.append(torch.stack([columns[0], *(column[order] for column in columns[1:])], dim=1))
        parents[0] = paths[-1][:, 1].tolist()
        nodes.append(make_nodes(parents, size))
    return Forest(paths, nodes)


@dataclass(frozen=True)
class TreeLoss:
    """What a training step of the hierarchical method computes beside the image encoder, on random
    embeddings.
    """

    forest: Forest
    params: HierParams
    labels: Tensor  # (B,)
    features: Tensor  # (K, D), of the texts of all trees
    projection: Tensor  # (D, D)
    embeddings: Tensor  # (B, D)

    def step(self, attack_steps: int) -> None:
        """Compute the objective and its gradient as often as a step does: in the attack, and to
        train.
        """
        head = PoincareHead(1.0, 1.0, 1.0, 0.5, self.params.tau)
        context = Context(
            images=self.embeddings,
            paths=[paths[self.labels] for paths in self.forest.paths],
            nodes=self.forest.nodes,
            towers=lambda images: (images, images, self.features @ self.projection),
            original=None,  # pyright: ignore
            head=head,
        )
        delta = torch.zeros_like(self.features, requires_grad=True)
        for _ in range(attack_steps):
            torch.autograd.grad(
                hita(context, Perturbation(self.embeddings, delta), self.params),
                [self.embeddings, delta],
            )
        loss = hierarchical(context, Perturbation(self.embeddings, delta.detach()), self.params)
        torch.autograd.grad(loss, [self.embeddings, self.projection])


def make_tree_loss(forest: Forest, params: HierParams, batch: int, dimensions: int) -> TreeLoss:
    """Make random embeddings (B, D) of random leaves, and random text features (K, D)."""
    generator = torch.Generator().manual_seed(0)
    count = sum(len(nodes.parents) for nodes in forest.nodes)
    return TreeLoss(
        forest,
        params,
        torch.randint(len(forest.paths[0]), (batch,), generator=generator),
        torch.randn(count, dimensions, generator=generator),
        torch.eye(dimensions).requires_grad_(True),
        torch.randn(batch, dimensions, generator=generator).requires_grad_(True),
    )
