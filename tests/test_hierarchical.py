"""The hierarchical objective against its formulas, written here as slow loops in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hierclip.config import load_params
from hierclip.hyperbolic import from_klein_sum, pairwise_distance, to_klein_sum
from hierclip.losses import Context, Perturbation, make_nodes
from hierclip.losses.hierarchical import (
    Placed,
    depth_gap,
    hierarchical,
    hita,
    level_weights,
    vicinity,
)
from hierclip.losses.levels import (
    Block,
    RolledUp,
    group_levels,
    roll_up,
    rolled_up,
)
from hierclip.models import PoincareHead
from tests.conftest import LEAVES, ROOT

close = torch.testing.assert_close
HIER = load_params(ROOT / "params.yaml").method["hier"]
IMAGES, DIMENSIONS = 9, 4
SETTINGS = {
    "image_radius": 1.2,
    "text_radius": 1.5,
    "top_radius": 0.7,
    "tau": 3.0,
    "zeta_vic": 1.0,
    "zeta_gap": 0.2,
}


class Linear:
    """Towers whose image embedding is linear in the image, and the texts of a forest in a row."""

    def __init__(self, trees, seed):
        generator = torch.Generator().manual_seed(seed)
        self.sizes = [list(tree.sizes) for tree in trees]
        self.weight = torch.randn(12, DIMENSIONS, generator=generator)
        self.texts = torch.randn(
            sum(map(sum, self.sizes)), DIMENSIONS, generator=generator, requires_grad=True
        )

    def __call__(self, images, local=False):
        return images.flatten(1) @ self.weight, images.new_zeros(0), self.texts

    def by_tree(self, texts):
        parts = iter(texts.split([size for tree in self.sizes for size in tree]))
        return [[next(parts) for _ in tree] for tree in self.sizes]


def make(trees, seed=0, **changes) -> SimpleNamespace:
    """A context over `trees`, images with a gradient, and settings."""
    params = HIER.model_copy(update=SETTINGS | changes)
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(len(LEAVES), (IMAGES,), generator=generator)
    images = torch.randn(IMAGES, 3, 2, 2, generator=generator)
    radii = params.curvature, params.image_radius, params.text_radius, params.top_radius
    head = PoincareHead(*radii, params.tau, params.norms, image_norm=3.0, text_norm=2.0)
    paths = [torch.from_numpy(tree.paths)[labels] for tree in trees]
    nodes = [make_nodes(tree.parents, tree.sizes[-1]) for tree in trees]
    towers = Linear(trees, seed)
    context = Context(images, paths, nodes, towers, Linear(trees, seed + 50), head)
    return SimpleNamespace(
        context=context, trees=trees, params=params, head=head, labels=labels, images=images
    )


class Book:
    """The design's formulas, point by point: what each level of each tree adds to the objective."""

    def __init__(self, case, shift=None, moved=None):
        """moved: the attacked images."""
        self.head, self.params = case.head, case.params
        self.images = case.images if moved is None else moved
        towers = case.context.towers
        texts = towers.texts.detach().double()
        if shift is not None:
            texts = texts + texts.norm(dim=1, keepdim=True) * shift.double()
        self.embeddings = (self.images.double().flatten(1) @ towers.weight.double()).numpy()
        self.terms, self.vic, self.gap_text, self.gap_image = [], [], [], []
        for tree, nodes in zip(case.trees, towers.by_tree(texts), strict=True):
            self.tree(
                tree,
                self.embeddings,
                [level.numpy() for level in nodes],
                tree.paths[case.labels.numpy()],
            )

    def expmap0(self, v, radius, typical):
        r, n = self.head.curvature, np.linalg.norm(v)
        length = radius * (2 * n / (n + typical) if self.head.norms == "free" else 1)
        return np.tanh(np.sqrt(r) * length) * v / (n * np.sqrt(r))

    def d(self, u, v):
        r = self.head.curvature
        q = r * np.sum((u - v) ** 2) / ((1 - r * u @ u) * (1 - r * v @ v))
        return np.arccosh(1 + 2 * q) / np.sqrt(r)

    def hyp_avg(self, zs):
        r = self.head.curvature
        ks = [2 * z / (1 + r * z @ z) for z in zs]
        gs = [1 / np.sqrt(1 - r * k @ k) for k in ks]
        k = sum(g * k for g, k in zip(gs, ks, strict=True)) / sum(gs)
        return k / (1 + np.sqrt(1 - r * k @ k))

    def points(self, l, points):
        """The points of a level above the leaves, from those below, and the gaps to them.

        A point has its path.
        """
        if self.params.roll_up == "single":
            return points, []
        out, gaps = [], []
        for node in sorted({path[l] for _, path in points}):
            family = [point for point in points if point[1][l] == node]
            z = self.hyp_avg([z for z, _ in family])
            out.append((z, family[0][1]))
            gaps += [np.linalg.norm(z) - np.linalg.norm(finer) for finer, _ in family]
        return out, gaps

    def tree(self, tree, embeddings, texts, paths):
        head, params, top, edges = self.head, self.params, tree.max_level, tree.graph().edges
        radii = [
            head.text_radius + (head.top_radius - head.text_radius) * l / top
            for l in range(top + 1)
        ]
        nodes = [
            [self.expmap0(t, radii[l], head.text_norm) for t in level]
            for l, level in enumerate(texts)
        ]
        points = []
        for e, p in zip(embeddings, paths, strict=True):
            points.append((self.expmap0(e, head.image_radius, head.image_norm), tuple(p)))
        terms, vic, gap_text, gap_image = [], [], [], []
        for l in range(top + 1):
            if l:
                points, gaps = self.points(l, points)
                gap_image += [np.mean([max(0, gap + params.zeta_gap) for gap in gaps or [-np.inf]])]
            sides = [l] + [
                k for k, side in ((l - 1, "finer"), (l + 1, "coarser")) if side in params.negatives
            ]
            losses = []
            for z, path in points:
                true = tree.levels[l][path[l]].id
                scores, right = [], -head.tau * self.d(z, nodes[l][path[l]])
                for k in (k for k in sides if 0 <= k <= top):
                    for node, place in zip(tree.levels[k], nodes[k], strict=True):
                        joined = (
                            node.id == true or (node.id, true) in edges or (true, node.id) in edges
                        )
                        if k == l or not joined:
                            scores.append(-head.tau * self.d(z, place))
                losses.append(np.log(np.exp(scores).sum()) - right)
            weight = (1 - l / (top + 1)) * (params.superclass_weight if l else 1)
            terms.append(weight * np.mean(losses))
            distances = [self.d(z, nodes[l][path[l]]) for z, path in points]
            vic.append(np.mean([max(0, d - params.zeta_vic) for d in distances]))
        for l, above in enumerate(tree.parents):
            gaps = [
                np.linalg.norm(nodes[l + 1][k]) - np.linalg.norm(nodes[l][i])
                for i, k in enumerate(above)
            ]
            gap_text.append(np.mean([max(0, gap + params.zeta_gap) for gap in gaps]))
        self.terms.append(terms)
        self.vic.append(np.mean(vic))
        self.gap_text.append(np.mean(gap_text))
        self.gap_image.append(np.mean(gap_image))

    @property
    def hita(self):
        return sum(map(sum, self.terms))

    @property
    def whole(self):
        depth = sum(self.gap_text) + sum(self.gap_image)
        return self.hita + self.params.vic * sum(self.vic) + self.params.gap * depth


def shift_like(case, seed=0):
    texts = case.context.towers.texts
    return 0.2 * torch.randn(texts.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norms", ["fixed", "free"])
@pytest.mark.parametrize("sides", [(), ("finer",), ("coarser",), ("finer", "coarser")])
@pytest.mark.parametrize("r", [0.3, 1.0])
def test_hita_is_the_sum_that_the_formulas_give(forest, r, sides, norms):
    case = make(forest, curvature=r, negatives=sides, norms=norms, superclass_weight=0.7)
    close(
        hita(case.context, Perturbation(case.images), case.params).item(),
        Book(case).hita,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_objective_is_the_sum_that_the_formulas_give(forest, seed):
    case = make(forest, seed, vic=0.5, gap=2.0)
    book = Book(case)
    assert min(sum(book.vic), sum(book.gap_text), sum(book.gap_image)) > 0
    close(
        hierarchical(case.context, Perturbation(case.images), case.params).item(),
        book.whole,
        rtol=1e-5,
        atol=1e-5,
    )


MODES = ["midpoint", "single"]


def moved_images(case, seed=0):
    draw = torch.randn(case.images.shape, generator=torch.Generator().manual_seed(seed))
    return case.images + 0.3 * draw


@pytest.mark.parametrize("sides", [(), ("finer", "coarser")])
@pytest.mark.parametrize("mode", MODES)
def test_every_roll_up_gives_the_sum_that_the_formulas_give(forest, mode, sides):
    settings = {"roll_up": mode, "vic": 0.5, "gap": 2.0, "norms": "free"}
    case = make(forest, curvature=0.8, negatives=sides, **settings)
    moved = moved_images(case)
    book = Book(case, moved=moved)
    loss = hierarchical(case.context, Perturbation(moved), case.params)
    close(loss.item(), book.whole, rtol=1e-5, atol=1e-5)
    attacked = hita(case.context, Perturbation(moved), case.params)
    close(attacked.item(), book.hita, rtol=1e-5, atol=1e-5)


def test_texts_are_moved_by_the_shift(forest):
    case = make(forest)
    shift = shift_like(case)
    loss = hita(case.context, Perturbation(case.images, shift), case.params)
    close(loss.item(), Book(case, shift).hita, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", [hita, hierarchical])
def test_a_forest_costs_the_sum_over_its_trees(forest, objective):
    both = make(forest)
    texts = both.context.towers.by_tree(both.context.towers.texts)
    total = 0.0
    for tree, levels in zip(forest, texts, strict=True):
        alone = make([tree])
        alone.context.towers.weight = both.context.towers.weight
        alone.context.towers.texts = torch.cat(levels)
        total += objective(alone.context, Perturbation(alone.images), alone.params)
    close(objective(both.context, Perturbation(both.images), both.params), total)


@pytest.mark.parametrize("levels", [(0,), (1,), (2,), (0, 2)])
def test_levels_limit_hita_to_themselves(forest, levels):
    case = make(forest)
    terms = [term for tree in Book(case).terms for l, term in enumerate(tree) if l in levels]
    loss = hita(case.context, Perturbation(case.images, levels=levels), case.params)
    close(loss.item(), sum(terms), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", [hita, hierarchical])
@pytest.mark.parametrize("mode", MODES)
def test_one_perturbation_a_level_adds_up_to_the_whole(forest, objective, mode):
    case = make(forest, vic=0.5, gap=2.0, roll_up=mode)
    whole = objective(case.context, Perturbation(case.images), case.params)
    parts = [
        objective(case.context, Perturbation(case.images, levels=(l,)), case.params)
        for l in range(3)
    ]
    close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize(
    ("level", "node", "finer", "coarser"),
    [
        (0, "dog", None, {"eagle", "vehicle"}),
        (0, "eagle", None, {"mammal", "vehicle"}),  # the eagle at level 1 is itself
        (1, "mammal", {"eagle", "car", "bus"}, {"vehicle"}),
        (1, "eagle", {"dog", "cat", "car", "bus"}, {"vehicle"}),
        (1, "vehicle", {"dog", "cat", "eagle"}, {"animal"}),
        (2, "animal", {"vehicle"}, None),
        (2, "vehicle", {"mammal", "eagle"}, None),
    ],
)
def test_negatives_are_the_nodes_of_the_levels_beside_that_share_no_edge_with_the_true_one(
    tree, level, node, finer, coarser
):
    names = [n.id for level in tree.levels for n in level]
    places = [(l, n.id) for l, level in enumerate(tree.levels) for n in level]
    leaf = next(
        k for k, path in enumerate(tree.paths) if tree.levels[level][path[level]].id == node
    )
    nodes = make_nodes(tree.parents, tree.sizes[-1])
    beside = {
        "finer": {(level - 1, name) for name in finer or ()},
        "coarser": {(level + 1, n) for n in coarser or ()},
    }
    of_level = {(level, n.id) for n in tree.levels[level]}
    for sides in ((), ("finer",), ("coarser",), ("finer", "coarser")):
        rolled = rolled_up(nodes, torch.from_numpy(tree.paths)[[leaf]], sides)
        assert names[rolled.nodes[level]] == node
        told_apart = {
            place
            for place, barred in zip(places, rolled.barred[level].tolist(), strict=True)
            if not barred
        }
        assert told_apart == of_level.union(*(beside[side] for side in sides))


def test_a_batch_is_rolled_up_to_the_points_of_every_level(tree):
    labels = torch.tensor([1, 4, 0, 1, 2])  # cat, bus, dog, cat, eagle
    rolled = rolled_up(
        make_nodes(tree.parents, tree.sizes[-1]), torch.from_numpy(tree.paths)[labels], ()
    )
    names = [n.id for level in tree.levels for n in level]
    assert [names[k] for k in rolled.nodes] == [
        *("cat", "bus", "dog", "cat", "eagle"),
        *("mammal", "eagle", "vehicle"),
        *("animal", "vehicle"),
    ]
    assert rolled.levels.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert rolled.parents.tolist() == [5, 7, 5, 5, 6, 8, 8, 9]
    close(rolled.shares, torch.tensor([1 / 5] * 5 + [1 / 3] * 3 + [1 / 2] * 2))


def test_level_weights_fall_evenly_from_one_and_those_above_the_leaves_are_scaled():
    assert level_weights(3, 1.0) == [1, 0.75, 0.5, 0.25]
    assert level_weights(3, 0.5) == [1, 0.375, 0.25, 0.125]
    assert level_weights(0, 0.5) == [1]


def on_a_line(*depths):
    """Points of the ball of curvature -1 at these distances from the centre: 2 artanh |z|."""
    return torch.tensor([[np.tanh(depth / 2), 0.0] for depth in depths], dtype=torch.float32)


def test_vicinity_asks_only_what_is_farther_than_zeta_from_its_own_text():
    images, texts = on_a_line(1.0, 2.0, 4.0), on_a_line(0.5, 1.5)
    distances = pairwise_distance(images, texts, 1.0)
    none = torch.zeros(0)
    rows = slice(0, 3)
    blocks = [Block(rows, slice(0, 2), rows)]
    rolled = RolledUp([], none, torch.tensor([0, 0, 1]), none, none, none, blocks)
    placed = Placed(make_nodes([], 2), rolled, 1.0, distances, texts[:, 0], images[:, 0])
    close(vicinity(placed, 1.0), torch.tensor([0.0, 0.5, 1.5]), rtol=1e-4, atol=1e-6)
    assert not vicinity(placed, 2.6).any()


def test_a_parent_is_to_be_nearer_to_the_centre_than_its_child_by_zeta():
    rows = torch.tensor([[0.6, 0.0], [0.0, 0.3], [0.0, -0.8], [0.0, 0.5], [0.4, 0.0]])
    norms = rows.norm(dim=1)
    parents = make_nodes([[0, 0, 1]], 2).parents[:3]
    assert parents.tolist() == [3, 3, 4]
    close(depth_gap(norms, parents, 0.05), torch.tensor([0.0, 0.25, 0.0]))  # as 0.5 - 0.3 + 0.05
    close(depth_gap(norms, parents, 0.5), torch.tensor([0.4, 0.7, 0.1]))


def test_penalties_are_nothing_where_they_are_satisfied(tree):
    case = make([tree], vic=1.0, gap=1.0, zeta_vic=100.0, zeta_gap=0.0)
    with torch.no_grad():
        case.head = case.head.__class__(
            1.0, 1.2, 1.5, 0.1, 3.0
        )  # texts in even steps far towards the centre
    book = Book(case)
    assert book.vic == [0] and book.gap_text == [0]
    satisfied = Context(
        case.images,
        case.context.paths,
        case.context.nodes,
        *[case.context.towers] * 2,
        case.head,
    )
    difference = hierarchical(satisfied, Perturbation(case.images), case.params) - hita(
        satisfied, Perturbation(case.images), case.params
    )
    close(difference.item(), book.gap_image[0], rtol=1e-4, atol=1e-6)
    assert satisfied.counts["vic_active"] == satisfied.counts["gap_text_active"] == 0


def test_what_acts_is_logged_as_shares(forest):
    case = make(forest, curvature=1.0)
    hierarchical(case.context, Perturbation(case.images), case.params)
    assert set(case.context.counts) == {
        "rim_images",
        "rim_texts",
        "vic_active",
        "gap_text_active",
        "gap_image_active",
    }
    assert case.context.counts["rim_images"] == case.context.counts["rim_texts"] == 0
    assert all(
        0 < case.context.counts[f"{name}_active"] <= 1 for name in ("vic", "gap_text", "gap_image")
    )
    rim = make(forest, image_radius=20.0, norms="fixed")
    hita(rim.context, Perturbation(rim.images), rim.params)
    assert not rim.context.counts  # the attack logs nothing
    hierarchical(rim.context, Perturbation(rim.images), rim.params)
    assert (rim.context.counts["rim_images"], rim.context.counts["rim_texts"]) == (1, 0)


@pytest.mark.parametrize("objective", [hita, hierarchical])
def test_the_gradient_reaches_images_and_the_texts_of_every_level(forest, objective):
    case = make(forest, negatives=())
    images = case.images.clone().requires_grad_(True)
    texts = case.context.towers.texts
    found = torch.autograd.grad(
        objective(case.context, Perturbation(images), case.params), [images, texts]
    )
    assert all(bool(gradient.isfinite().all()) for gradient in found)
    assert found[0].flatten(1).any(1).all() and found[1].any(1).all()


def test_hita_asks_nothing_of_the_order_of_images(forest):
    case = make(forest)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    paths = [rows[order] for rows in case.context.paths]
    towers = case.context.towers
    turned = Context(
        case.images[order], paths, case.context.nodes, towers, towers, case.context.head
    )
    loss = hita(case.context, Perturbation(case.images), case.params)
    close(hita(turned, Perturbation(case.images[order]), case.params), loss)


def test_descending_the_loss_makes_every_level_right(tree):
    case = make([tree], norms="fixed", vic=0.0, gap=0.0, tau=7.0)
    towers, size = case.context.towers, sum(tree.sizes)
    towers.texts = torch.eye(
        size
    )  # each text its own direction: no level is right by another's doing
    towers.weight = torch.randn(12, size, generator=torch.Generator().manual_seed(1))
    images = case.images.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        hierarchical(case.context, Perturbation(images), case.params).backward()
        optimizer.step()
    head, groups = case.head, group_levels(case.context.paths[0])
    levels = roll_up(
        to_klein_sum(head.image_points(towers(images)[0]), head.curvature), groups
    )  # a superclass is read off these
    own = [case.context.paths[0][:, 0], *(group.nodes for group in groups)]
    for l, texts in enumerate(towers.by_tree(towers.texts)[0]):
        assert torch.equal(
            head.logits(
                from_klein_sum(levels[l], head.curvature).float(),
                head.text_points(texts, l, tree.max_level),
            ).argmax(1),
            own[l],
        )
