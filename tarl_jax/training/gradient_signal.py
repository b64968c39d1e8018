"""How well the gradient of a few groups points in a direction that other groups agree on.

P groups, each with its gradient. The tasks are halved at random, SPLITS times; the gradients of
some groups of one half are compared with the sum of another gradient, the reference, over all
groups of the other half, so that no episode stands on both sides. Errors are those of a jackknife
over BLOCKS blocks of tasks, which sees that all halves share the same episodes.

The length of a draw's gradient follows from the inner products [P, P] of the groups' gradients,
however many cells these have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

SPLITS = 10  # each is used both ways round
BLOCKS = 10
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Design:
    """What is compared with what, the same for all ways.

    Attributes:
      halves: (groups that are drawn from, groups of the reference); each odd one is the one before
        it, turned round.
      orders: per half [draws, groups in it] its groups in the order of each draw, which takes the
        first `take`.
      take: groups of a draw.
      blocks: per group its block of the jackknife.
    """

    halves: list[tuple[Int[np.ndarray, " A"], Int[np.ndarray, " B"]]]
    orders: list[Int[np.ndarray, "draws A"]]
    take: int
    blocks: Int[np.ndarray, " P"]


@dataclasses.dataclass(frozen=True)
class Signal:
    """Of one way of crediting; each with its standard error.

    Attributes:
      cosine: mean cosine of a draw's gradient with the reference.
      equivalent: (its cosine over the baseline's)^2, with the cosine's sign: how many times as many
        groups the baseline would need, as long as cosines are far below 1.
      asymptotic: cosine that endless groups would have with an endless reference; NaN where the two
        halves do not agree.
    """

    cosine: float
    cosine_error: float
    equivalent: float
    equivalent_error: float
    asymptotic: float
    asymptotic_error: float


def make_design(tasks: Sequence[str], take: int, draws: int, seed: int) -> Design:
    """tasks: per group its task; all groups of a task fall into the same half."""
    rng = np.random.default_rng(seed)
    names, of = np.unique(np.asarray(tasks), return_inverse=True)
    halves, orders = [], []
    for _ in range(SPLITS):
        first = rng.permutation(len(names)) < len(names) // 2
        pair = np.flatnonzero(first[of]), np.flatnonzero(~first[of])
        for drawn, reference in (pair, pair[::-1]):
            halves.append((drawn, reference))
            orders.append(rng.permuted(np.tile(drawn, (draws, 1)), axis=1))
    blocks = rng.permutation(np.arange(len(names)) % BLOCKS)
    return Design(halves, orders, take, blocks[of])


def estimates(
    design: Design,
    gradients: Sequence[Float[np.ndarray, "P cells"]],
    references: Sequence[Float[np.ndarray, "P cells"]],
) -> list[Float[np.ndarray, "2 blocks"]]:
    """Per reference (mean cosine, asymptotic cosine): of all groups, then without each block.

    gradients: per half of the design; one array for all of them where there is one only.
    """
    names = np.unique(design.blocks)
    kept = np.concatenate([np.ones((1, len(design.blocks)), bool), design.blocks != names[:, None]])
    weights = kept.astype(np.float64)
    cosines = np.zeros((len(references), len(kept), len(design.halves)))
    # Of one half with the other: way and way, way and reference, reference and reference.
    products = np.zeros((len(references), len(kept), 3))
    own = np.zeros((0, 0))
    for h, (drawn, against) in enumerate(design.halves):
        now, turned = (gradients[min(i, len(gradients) - 1)] for i in (h, h ^ 1))
        if h < len(gradients):
            own = now @ now.T
        mine, theirs = weights[:, drawn] @ now[drawn], weights[:, against] @ turned[against]
        goals = []
        for r, reference in enumerate(references):
            near, goal = (weights[:, of] @ reference[of] for of in (drawn, against))
            products[r] += np.stack([(a * b).sum(axis=1) for a, b in
                                     ((mine, theirs), (mine, goal), (near, goal))], axis=1)
            goals.append((now @ goal.T, np.linalg.norm(goal, axis=1)))
        order = design.orders[h]
        for k, keep in enumerate(kept):
            picks = order[keep[order]].reshape(len(order), -1)[:, : design.take]
            spans = np.maximum(own[picks[:, :, None], picks[:, None, :]].sum(axis=(1, 2)), 0.0)
            for r, (along, lengths) in enumerate(goals):
                scale = np.sqrt(spans) * lengths[k]
                cosine = np.divide(along[picks, k].sum(axis=1), scale, out=np.zeros(len(picks)),
                                   where=scale > _TINY)
                cosines[r, k, h] = cosine.mean() if len(cosine) else 0.0
    sure = (products[..., 0] > _TINY) & (products[..., 2] > _TINY)
    scales = np.sqrt(np.where(sure, products[..., 0] * products[..., 2], np.nan))
    return list(np.stack([cosines.mean(axis=2), products[..., 1] / scales], axis=1))


def signal(of: Float[np.ndarray, "2 blocks"], baseline: Float[np.ndarray, "2 blocks"]) -> Signal:
    """From the `estimates` of a way and of the baseline, whose cosine is positive."""
    ratio = of[0] / np.where(baseline[0] > _TINY, baseline[0], np.nan)
    numbers = (of[0], np.sign(ratio) * ratio**2, of[1])
    return Signal(*(x for n in numbers for x in (float(n[0]), _jackknife(n[1:]))))


def _jackknife(without: Float[np.ndarray, " blocks"]) -> float:
    count = len(without)
    spread = ((without - without.mean()) ** 2).sum()
    return float(np.sqrt((count - 1) / count * spread)) if count > 1 else float("nan")
