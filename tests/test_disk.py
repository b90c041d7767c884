"""The geometry of the disk against closed forms; disk.js runs in the node of playwright."""

import json
import subprocess
from itertools import permutations
from math import hypot, tau

import numpy as np
import pytest
from playwright._impl._driver import compute_driver_executable

from tests.conftest import ROOT

DISK = ROOT / "lib/hierclip/explorer/disk.js"
BALL = {"kind": "poincare", "curvature": 1.0}
FLAT = {"kind": "euclidean", "image_radius": 2.0, "text_radius": 1.0, "top_radius": 0.5}

STAGE = """
class Element {
  children = []; attributes = {}; style = {}; classList = { add() {} };
  appendChild(child) { this.children.push(child); return child; }
  replaceChildren(...children) { this.children = children; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener() {}
  querySelectorAll() { return this.children.filter((child) => child.attributes.class === "node"); }
}
const make = () => new Element();
globalThis.document = { createElement: make, createElementNS: make, createTextNode: make };
const values = (count, level) => ({
  scene: { head: { kind: "poincare", curvature: 1 }, families: 1, nodes: Array.from({ length: count },
    (_, k) => ({ name: `${k}`, level: 0, norm: 0.5, angle: k, family: 0, count: 1, leaves: [0], parent: null })) },
  marks: { path: [count - 1], states: [{ norms: [0.4], angles: [0], nodes: [count - 1] }] },
  level, stretch: 0.6, images: {},
});
"""


def call(function: str, *arguments: list) -> list:
    """Return what a function of disk.js gives for each list of arguments."""
    script = f"""import {{ {function} }} from "{DISK.as_uri()}";
    let text = "";
    for await (const part of process.stdin) text += part;
    console.log(JSON.stringify(JSON.parse(text).map((each) => {function}(...each))));"""
    return run(script, json.dumps(arguments))


def run(script: str, text: str = "") -> list:
    node = compute_driver_executable()[0]
    command = [node, "--no-warnings", "--input-type=module", "--eval", script]
    done = subprocess.run(command, input=text, capture_output=True, check=True, encoding="utf8")
    return json.loads(done.stdout)


def centre(p, q, radius, sweep):
    """Return the centre of the circle on which SVG's short arc with this sweep lies."""
    middle = ((p[0] + q[0]) / 2, (p[1] + q[1]) / 2)
    half = hypot(q[0] - p[0], q[1] - p[1]) / 2
    along = ((q[0] - p[0]) / (2 * half), (q[1] - p[1]) / (2 * half))
    offset = max(radius**2 - half**2, 0) ** 0.5 * (1 if sweep else -1)
    return middle[0] - offset * along[1], middle[1] + offset * along[0]


def test_a_geodesic_lies_on_a_circle_that_meets_the_rim_at_right_angles():
    rng = np.random.default_rng(0)
    norms = rng.uniform(0.05, 0.95, (200, 2))
    angles = rng.uniform(0, tau, (200, 2))
    pairs = np.stack([norms * np.cos(angles), norms * np.sin(angles)], axis=-1).tolist()
    checked = 0
    for (p, q), (radius, sweep) in zip(pairs, call("geodesic", *pairs), strict=True):
        if 1e-2 < radius < 1e2 and hypot(p[0] - q[0], p[1] - q[1]) > 1e-2:
            assert hypot(*centre(p, q, radius, sweep)) ** 2 == pytest.approx(1 + radius**2)
            checked += 1
    assert checked > 150


def test_the_geodesic_between_two_points_of_one_norm_is_the_known_one():
    p, q = [0.5, 0.0], [0.0, 0.5]  # on x^2 + y^2 - 2.5 (x + y) + 1 = 0
    forth, back = call("geodesic", [p, q], [q, p])
    radius = (2 * 1.25**2 - 1) ** 0.5
    assert forth == [pytest.approx(radius), 0] and back == [pytest.approx(radius), 1]


def test_a_geodesic_through_the_centre_is_straight():
    assert call("geodesic", [[0.3, 0.4], [-0.6, -0.8]], [[0, 0], [0.3, 0.4]]) == [[0, 0], [0, 0]]


def test_radius_rises_with_norm_and_stays_inside_the_rim():
    norms = np.linspace(0, 1, 1001).tolist()
    for stretch in (0.1, 0.5, 1.0):
        radii = np.array(call("radius", *([BALL, norm, stretch] for norm in norms)))
        assert radii[0] == 0 and radii.max() < 1
        assert (np.diff(radii)[:-20] > 0).all() and (np.diff(radii) >= 0).all()


def test_a_stretch_of_one_draws_norms_as_they_are_and_half_of_it_halves_the_distance():
    half = BALL | {"curvature": 0.25}  # of radius 2
    norms = [0.0, 0.3, 0.9]
    whole = call("radius", *([half, 2 * norm, 1.0] for norm in norms))
    near = call("radius", *([half, 2 * norm, 0.5] for norm in norms))
    np.testing.assert_allclose(whole, norms, atol=1e-12)
    np.testing.assert_allclose(np.arctanh(near), np.arctanh(norms) / 2)


def test_flat_norms_are_drawn_in_proportion_and_those_of_a_head_by_angle_on_one_circle():
    assert call("radius", [FLAT, 2.0, 0.5], [FLAT, 1.0, 1.0]) == [0.5, 0.25]
    assert call("radius", [{"kind": "cosine", "scale": 20.0}, 1.0, 0.5]) == [0.8]


@pytest.mark.parametrize("order", list(permutations(("scene", "marks", "level"))))
@pytest.mark.parametrize(("before", "after"), [(2, 5), (5, 2)])
def test_what_arrives_together_is_drawn_whatever_is_told_first(order, before, after):
    script = f"""import disk from "{DISK.as_uri()}";
    {STAGE}
    let state = values({before}, 1);
    const told = {{}}, el = make();
    const model = {{ get: (name) => state[name], on: (event, act) => (told[event] = act) }};
    disk.render({{ model, el }});
    state = values({after}, 0);
    for (const name of {json.dumps(order)}) told[`change:${{name}}`]();
    const [tree, labels, marks] = el.children[0].children;
    const names = labels.children.length / 2;
    console.log(JSON.stringify([tree.querySelectorAll().length, names, marks.children.length]));"""
    assert run(script) == [after, after, 3]  # of the path, the nearest node, the image
