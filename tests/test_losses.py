import numpy as np
import pytest
import torch

from hierclip.losses import METHODS, find_method, hita, leaf_cross_entropy, level_weight
from hierclip.model import CosineHead, PoincareHead
from hierclip.poincare import group_midpoints

close = torch.testing.assert_close


def case(tree, seed=0, images=9):
    """Embeddings of images (B, 4), of every level's texts, and the images' paths in the tree."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(tree.leaves), (images,), generator=generator)
    texts = [torch.randn(size, 4, generator=generator) for size in tree.sizes]
    return torch.randn(images, 4, generator=generator), texts, torch.from_numpy(tree.paths)[labels]


def place(head, texts):
    return [head.text_points(text, level, len(texts) - 1) for level, text in enumerate(texts)]


def hita_by_the_book(head, embeddings, texts, paths) -> float:
    """The design's formulas, point by point, in float64."""
    r, top = head.curvature, len(texts) - 1

    def exp0(v, radius):
        v = radius * v / np.linalg.norm(v)
        return np.tanh(np.sqrt(r) * np.linalg.norm(v)) * v / (np.sqrt(r) * np.linalg.norm(v))

    def d(u, v):
        q = r * np.sum((u - v) ** 2) / ((1 - r * u @ u) * (1 - r * v @ v))
        return np.arccosh(1 + 2 * q) / np.sqrt(r)

    def hyp_avg(zs):
        ks = [2 * z / (1 + r * z @ z) for z in zs]
        gs = [1 / np.sqrt(1 - r * k @ k) for k in ks]
        k = sum(g * k for g, k in zip(gs, ks, strict=True)) / sum(gs)
        return k / (1 + np.sqrt(1 - r * k @ k))

    points = [(exp0(e, head.image_radius), path) for e, path in zip(embeddings, paths, strict=True)]
    total = 0.0
    for l in range(top + 1):
        if l:
            classes = sorted({path[l] for _, path in points})
            families = [[(z, path) for z, path in points if path[l] == c] for c in classes]
            points = [(hyp_avg([z for z, _ in family]), family[0][1]) for family in families]
        nodes = [exp0(t, head.text_radius * (1 - l / (2 * top) if top else 1)) for t in texts[l]]
        terms = []
        for z, path in points:
            logits = np.array([-head.tau * d(z, node) for node in nodes])
            terms.append(np.log(np.exp(logits).sum()) - logits[path[l]])
        total += (1 - l / (top + 1)) * np.mean(terms)
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("r", [0.3, 1.0, 2.0])
def test_hita_is_the_sum_that_the_formulas_give(tree, seed, r):
    head = PoincareHead(curvature=r, image_radius=1.2, text_radius=1.5, tau=3.0)
    embeddings, texts, paths = case(tree, seed)
    loss = hita(head, embeddings, place(head, texts), paths)
    expected = hita_by_the_book(head, embeddings.double().numpy(), [t.double().numpy() for t in texts], paths.numpy())
    close(loss.item(), expected, rtol=1e-5, atol=1e-5)


def test_leaf_cross_entropy_by_hand():
    texts = [torch.eye(2), torch.ones(1, 2)]
    embeddings, paths = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0]]), torch.tensor([[0, 0], [1, 0], [1, 0]])
    right, wrong = np.log(1 + np.exp(-4)), np.log(1 + np.exp(4))
    loss = leaf_cross_entropy(CosineHead(4.0), embeddings, texts, paths)
    close(loss.item(), (2 * right + wrong) / 3)


def test_hita_of_one_level_is_the_plain_cross_entropy(tree):
    head = PoincareHead(1.0, 1.0, 1.0, 3.0)
    embeddings, texts, paths = case(tree)
    leaves = place(head, texts)[:1]
    close(hita(head, embeddings, leaves, paths[:, :1]), leaf_cross_entropy(head, embeddings, leaves, paths[:, :1]))


def test_hita_asks_nothing_of_the_order_of_images_and_nodes(tree):
    head = PoincareHead(1.0, 1.0, 1.5, 3.0)
    embeddings, texts, paths = case(tree)
    points = place(head, texts)
    loss = hita(head, embeddings, points, paths)
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))
    close(hita(head, embeddings[order], points, paths[order]), loss)
    renamed = torch.stack([paths[:, 0], 2 - paths[:, 1], 1 - paths[:, 2]], dim=1)
    close(hita(head, embeddings, [points[0], points[1].flip(0), points[2].flip(0)], renamed), loss)


def test_level_weights_fall_evenly_from_one():
    assert [level_weight(l, 3) for l in range(4)] == [1, 0.75, 0.5, 0.25]
    assert level_weight(0, 0) == 1


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.loss])
def test_the_gradient_reaches_images_and_the_texts_that_count(tree, params, name):
    method = METHODS[name]
    head = method.head(params.finetune, 10.0)
    embeddings, texts, paths = case(tree)
    inputs = [x.requires_grad_(True) for x in (embeddings, *texts)]
    gradients = torch.autograd.grad(
        method.loss(head, embeddings, place(head, texts), paths), inputs, allow_unused=name == "tecoa"
    )
    reached = [gradient is not None and bool(gradient.isfinite().all() and gradient.any()) for gradient in gradients]
    assert reached == ([True, True, False, False] if name == "tecoa" else [True] * 4)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.loss])
def test_descending_the_loss_makes_every_level_that_counts_right(tree, params, name):
    method = METHODS[name]
    head = method.head(params.finetune, 10.0)
    _, _, paths = case(tree)
    apart = torch.eye(sum(tree.sizes))  # each text its own direction: no level is right by another's doing
    texts = place(head, apart.split(tree.sizes))
    embeddings = torch.randn(len(paths), len(apart), generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    optimizer = torch.optim.Adam([embeddings], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        method.loss(head, embeddings, texts, paths).backward()
        optimizer.step()
    points = head.image_points(embeddings)
    assert torch.equal(head.logits(points, texts[0]).argmax(1), paths[:, 0])
    for text in texts[1:] if name == "hier" else []:  # a superclass is read off its members' midpoint
        paths, groups = torch.unique(paths[:, 1:], dim=0, return_inverse=True)
        points = group_midpoints(points, groups, len(paths), head.curvature)
        assert torch.equal(head.logits(points, text).argmax(1), paths[:, 0])


def test_methods_are_read_through_their_own_heads(params):
    scale, finetune = 20.0, params.finetune
    heads = {name: method.head(finetune, scale) for name, method in METHODS.items()}
    assert heads["clip"] == CosineHead(scale)
    assert heads["tecoa"] == CosineHead(scale * finetune.tecoa.logit_scale)
    assert heads["hier"] == PoincareHead(**finetune.hier.model_dump(exclude={"lr", "text_lr"}))


def test_only_the_hierarchical_method_may_change_the_text_projection(params):
    rates = {name: method.rates(params.finetune) for name, method in METHODS.items()}
    hier = params.finetune.hier
    assert rates == {"clip": (0, 0), "tecoa": (params.finetune.tecoa.lr, 0), "hier": (hier.lr, hier.text_lr)}


def test_an_unknown_method_is_named_beside_the_known():
    with pytest.raises(ValueError, match="no method 'trades'; known are clip, tecoa, hier"):
        find_method("trades")
    assert find_method("hier") is METHODS["hier"]
