"""Distances in the ball beside geoopt's and a bare matrix product."""

from benchmarks.measure import Row, in_process, thread_counts

# In a process of its own: with freed memory kept, as `make` asks for, geoopt's gigabytes cost a
# fifth.
DISTANCES = """
import json, sys, warnings

import torch

from benchmarks.measure import interleaved, ratio
from hierclip import hyperbolic

warnings.simplefilter("ignore")  # geoopt uses torch.jit.script, which torch has deprecated
import geoopt

torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
u = 0.02 * torch.randn(256, 512, generator=generator)
v = 0.02 * torch.randn(1000, 512, generator=generator)
ball = geoopt.PoincareBall(c=1.0)
ways = {
    "ours": lambda: hyperbolic.pairwise_distance(u, v, 1.0),
    "geoopt": lambda: ball.dist(u[:, None], v[None]),
    "product": lambda: u @ v.T,
}
times = interleaved(ways, rounds=7, warm_up=2)
ratios = {"geoopt": ratio(times, "geoopt", "ours"), "product": ratio(times, "ours", "product")}
print(json.dumps(ratios))
"""


def distances() -> list[Row]:
    """Time all distances between 256 and 1,000 points of 512 dimensions, in float32."""
    rows, note = [], "256 x 1,000 points, 512 dimensions, float32"
    for count in thread_counts():
        found = in_process(DISTANCES, count)
        rows.append(
            Row("distance", "geoopt / ours", count, found["geoopt"], at_least=200, note=note)
        )
        rows.append(
            Row("distance", "ours / matrix product", count, found["product"], at_most=4, note=note)
        )
    return rows
