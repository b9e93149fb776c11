"""Cells of one image from clicks, by evidence: each worker clicks a cell at most once.

The clicks of an image are modelled as cells, which worker j clicks with probability p_j (more or less, by the
cell's difficulty) at a scatter of his own, over a background of stray clicks that form a Poisson process. A
configuration of cells is worth its log odds against all clicks being strays: empty ground and workers who
did not click are evidence too. Cells are born where unclaimed clicks of two workers meet, moved to the
precision-weighted mean of their clicks, and merged or split where that is worth more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import logsumexp

from brainmap.gt.jitter import Scatter, log_t, robust_weight

__all__ = ["SPREADS", "ImageModel", "cell_log_odds", "find_cells", "tightness"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KERNEL, LINK = 0.7, 1.5  # of the seeds' density estimate, in widths
NEAR = 2.6  # cells closer than this many widths may be one
REPEAT = 0.05  # share of clicks that repeat a worker's own click on the same cell
LEVELS = np.linspace(-3, 3, 7)  # difficulty, logits
SPREADS = np.array([1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0])  # of clicks on what is no cell, against a cell's


@dataclass(frozen=True)
class ImageModel:
    """What is believed of an image's workers while its clicks are clustered.

    Per worker (m,): `log_stray` log density of stray clicks (1/px^2), `click`, `none` (m, 7) log probabilities
    of a click and of none by difficulty, `base` (7,) sum of `none` over those who count as having seen the image;
    `odds` (m,) log odds of a click; `log_density` of cells (1/px^2).
    """

    log_stray: Floats
    click: Floats
    none: Floats
    base: Floats
    odds: Floats
    log_prior: Floats
    log_density: float
    scatter: Scatter
    reach: float

    @classmethod
    def build(
        cls,
        logit_p: Floats,
        stray: Floats,
        complete: npt.NDArray[np.bool_],
        tau: float,
        density: float,
        scatter: Scatter,
        reach: float,
    ) -> ImageModel:
        """From logits of p (m,), stray clicks per px^2 (m,) and the difficulty's width."""
        eta = logit_p[:, None] + LEVELS
        click, none = -np.logaddexp(0, -eta), -np.logaddexp(0, eta)
        prior = -0.5 * (LEVELS / tau) ** 2
        # A click of one who did not finish the image counts; that he did not click elsewhere does not.
        effective = np.where(complete[:, None], none, 0.0)
        return cls(
            np.log(stray),
            click,
            effective,
            effective.sum(axis=0),
            np.clip(logit_p, -1.4, 2.2),
            prior - logsumexp(prior),
            float(np.log(density)),
            scatter,
            reach,
        )


@dataclass(frozen=True)
class _Field:
    """Clicks (n, 2), their workers, widths and the reach within which each is more likely a cell's than stray."""

    xy: Floats
    worker: Ints
    width: Floats
    reach: Floats

    def take(self, rows: Ints) -> _Field:
        return _Field(self.xy[rows], self.worker[rows], self.width[rows], self.reach[rows])


def find_cells(xy: Floats, worker: Ints, width: Floats, model: ImageModel) -> tuple[Floats, Ints, Floats]:
    """Cells of one image.

    Parameters
    ----------
    xy : (n, 2)
        Clicks x, y, freed of their workers' bias.
    worker : (n,)
        Row of each click's worker in `model`.
    width : (n,)
        Scatter of each click, px.

    Returns
    -------
    centres : (K, 2)
    label : (n,)
        Cell of each click, -1 for none: strays, and repeats.
    reach : (n,)
        Distance at which each click would rather be a stray.
    """
    tail = model.scatter.tail
    gain = model.odds[worker] - model.log_stray[worker] - np.log(2 * np.pi * width**2)
    reach = width * np.sqrt(tail * np.expm1(np.maximum(2 / (tail + 2) * gain, 0)))
    field = _Field(xy, worker, width, np.clip(reach, 0.5 * width, model.reach * width))
    label, centres = np.full(len(xy), -1), np.zeros((0, 2))
    if len(xy) > 1:
        label, centres = _seed(field, label, centres, model)
        label, centres = _improve(field, label, centres, model)
    return centres, label, field.reach


def _seed(field: _Field, label: Ints, centres: Floats, model: ImageModel) -> tuple[Ints, Floats]:
    """Cells where clicks of two workers meet: tight groups first, then ever looser ones of what is left."""
    size, most = model.scatter.width, float(np.median(field.reach))
    while True:
        for _ in range(2):
            left = np.flatnonzero(label < 0)
            if len(left) < 2:
                return label, centres
            root = _quick_shift(field.xy[left], KERNEL * size, LINK * size)
            _, group = np.unique(root, return_inverse=True)
            count = np.bincount(group)
            pairs = np.unique(np.stack([group, field.worker[left]], axis=1), axis=0)
            shared = np.bincount(pairs[:, 0], minlength=len(count)) >= 2
            if not shared.any():
                break
            born = np.stack([np.bincount(group, field.xy[left, a]) / count for a in (0, 1)], axis=1)[shared]
            label, centres = _settle(field, np.r_[centres, born], model, 3)
            label, centres = _drop_empty(label, centres)
        if LINK * size >= most:
            return label, centres
        size *= 2


def _quick_shift(xy: Floats, kernel: float, link: float) -> Ints:
    """Root of each point: follow the nearest denser neighbour within `link` (Vedaldi and Soatto 2008)."""
    n = len(xy)
    pairs = cKDTree(xy).query_pairs(max(link, 3 * kernel), output_type="ndarray")
    distance = np.sqrt(((xy[pairs[:, 0]] - xy[pairs[:, 1]]) ** 2).sum(axis=1))
    value = np.exp(-0.5 * (distance / kernel) ** 2)
    density = np.bincount(pairs[:, 0], value, n) + np.bincount(pairs[:, 1], value, n) - 1e-9 * np.arange(n)
    here, there = np.r_[pairs[:, 0], pairs[:, 1]], np.r_[pairs[:, 1], pairs[:, 0]]
    distance = np.r_[distance, distance]
    up = (density[there] > density[here]) & (distance <= link)
    here, there, distance = here[up], there[up], distance[up]
    order = np.lexsort((there, distance, here))
    here, there = here[order], there[order]
    parent = np.arange(n)
    first = np.ones(len(here), bool)
    first[1:] = here[1:] != here[:-1]
    parent[here[first]] = there[first]
    while True:
        above = parent[parent]
        if (above == parent).all():
            return parent
        parent = above


def _assign(field: _Field, centres: Floats) -> Ints:
    """Cell of each click within its reach, nearest pairs first, a worker at most once per cell; -1 none."""
    n, k = len(field.xy), len(centres)
    label = np.full(n, -1)
    if n == 0 or k == 0:
        return label
    if n * k < 4000:
        distance = np.sqrt(((field.xy[:, None] - centres[None]) ** 2).sum(axis=2))
        click, cell = np.nonzero(distance <= field.reach[:, None])
        distance = distance[click, cell]
    else:
        near = cKDTree(field.xy).sparse_distance_matrix(
            cKDTree(centres), float(field.reach.max()), output_type="coo_matrix"
        )
        click, cell, distance = near.row.astype(np.int64), near.col.astype(np.int64), near.data
        inside = distance <= field.reach[click]
        click, cell, distance = click[inside], cell[inside], distance[inside]
    order = np.lexsort((cell, click, distance))
    click, cell = click[order], cell[order]
    slot = np.unique(cell * (int(field.worker.max()) + 1) + field.worker[click], return_inverse=True)[1]
    n_slots = int(slot.max(initial=-1)) + 1
    # Greedy by distance, all pairs at once that are first of both their click and their (worker, cell).
    while len(click):
        rank = np.arange(len(click))
        first_click, first_slot = np.empty(n, np.int64), np.empty(n_slots, np.int64)
        first_click[click[::-1]], first_slot[slot[::-1]] = rank[::-1], rank[::-1]
        take = (first_click[click] == rank) & (first_slot[slot] == rank)
        label[click[take]] = cell[take]
        used_click, used_slot = np.zeros(n, bool), np.zeros(n_slots, bool)
        used_click[click[take]], used_slot[slot[take]] = True, True
        keep = ~(used_click[click] | used_slot[slot])
        click, cell, slot = click[keep], cell[keep], slot[keep]
    return label


def _settle(field: _Field, centres: Floats, model: ImageModel, rounds: int) -> tuple[Ints, Floats]:
    """Assign and move to the robust, precision-weighted mean, in turn."""
    k = len(centres)
    for _ in range(rounds):
        label = _assign(field, centres)
        rows = np.flatnonzero(label >= 0)
        own, xy, width = label[rows], field.xy[rows], field.width[rows]
        square = ((xy - centres[own]) ** 2).sum(axis=1) / width**2
        weight = robust_weight(square, model.scatter.tail) / width**2
        total = np.bincount(own, weight, k)
        mean = np.stack([np.bincount(own, weight * xy[:, a], k) for a in (0, 1)], axis=1)
        centres = np.where(total[:, None] > 0, mean / np.maximum(total, 1e-300)[:, None], centres)
    return _assign(field, centres), centres


def _drop_empty(label: Ints, centres: Floats) -> tuple[Ints, Floats]:
    used = np.bincount(label[label >= 0], minlength=len(centres)) > 0
    new = np.cumsum(used) - 1
    return np.where(label >= 0, new[label] if len(new) else -1, -1), centres[used]


def _place(field: _Field, label: Ints, centres: Floats, model: ImageModel) -> tuple[Ints, Floats, Floats]:
    """Clicks that are assigned, their log density, and per cell the log area its centre is known to."""
    rows = np.flatnonzero(label >= 0)
    own, width, tail = label[rows], field.width[rows], model.scatter.tail
    square = ((field.xy[rows] - centres[own]) ** 2).sum(axis=1) / width**2
    precision = np.bincount(own, (tail + 2) / (tail + 4) / width**2, len(centres))
    return rows, log_t(square, width, tail), np.log(2 * np.pi / np.maximum(precision, 1e-300))


def cell_log_odds(field: _Field, label: Ints, centres: Floats, model: ImageModel) -> Floats:
    """Log odds of each cell (K,) against its clicks being strays; difficulty and position integrated out."""
    k = len(centres)
    rows, density, area = _place(field, label, centres, model)
    own, who = label[rows], field.worker[rows]
    place = np.bincount(own, density - model.log_stray[who], k)
    change = model.click - model.none
    level = np.stack([np.bincount(own, change[who, m], k) for m in range(len(LEVELS))], axis=1)
    return np.asarray(
        model.log_density + logsumexp(level + model.base + model.log_prior, axis=1) + place + area
    )


def _worth(field: _Field, label: Ints, centres: Floats, model: ImageModel) -> float:
    """Log odds of a configuration: its cells, and unclaimed clicks as strays or as repeats beside a cell."""
    used = np.bincount(label[label >= 0], minlength=len(centres)) > 0
    value = float(np.maximum(cell_log_odds(field, label, centres, model), 0)[used].sum())
    left = np.flatnonzero(label < 0)
    if len(left) and used.any():
        square = ((field.xy[left][:, None] - centres[used][None]) ** 2).sum(axis=2).min(axis=1)
        near = np.log(REPEAT) + log_t(square / field.width[left] ** 2, field.width[left], model.scatter.tail)
        value += float(np.logaddexp(0, near - model.log_stray[field.worker[left]]).sum())
    return value


def _improve(field: _Field, label: Ints, centres: Floats, model: ImageModel) -> tuple[Ints, Floats]:
    """Merge and split cells while that is worth it, at most three times around."""
    tree = cKDTree(field.xy)
    tested: set[tuple[float, ...]] = set()
    for _ in range(3):
        merged = _merge(field, label, centres, model, tree, tested)
        if merged is not None:
            label, centres = merged
        split = _split(field, label, centres, model, tree, tested)
        if split is not None:
            label, centres = split
        if merged is None and split is None:
            break
    label, centres = _settle(field, centres, model, 1)
    return _drop_empty(label, centres)


def _around(tree: cKDTree, at: Floats, radius: float, label: Ints, members: npt.NDArray[np.bool_]) -> Ints:
    """Rows of the members and of the unclaimed clicks near them."""
    near = np.array(tree.query_ball_point(at, radius), np.int64)
    return np.union1d(near[label[near] < 0], np.flatnonzero(members)).astype(np.int64)


def _merge(
    field: _Field,
    label: Ints,
    centres: Floats,
    model: ImageModel,
    tree: cKDTree,
    tested: set[tuple[float, ...]],
) -> tuple[Ints, Floats] | None:
    if len(centres) < 2:
        return None
    far, near = float(np.median(field.reach)), NEAR * model.scatter.width
    count = np.bincount(label[label >= 0], minlength=len(centres))
    pairs = cKDTree(centres).query_pairs(max(near, far), output_type="ndarray")
    distance = np.sqrt(((centres[pairs[:, 0]] - centres[pairs[:, 1]]) ** 2).sum(axis=1))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], distance))
    pairs, distance = pairs[order], distance[order]
    few = np.minimum(count[pairs[:, 0]], count[pairs[:, 1]]) <= 3
    centres, gone, touched = centres.copy(), np.zeros(len(centres), bool), np.zeros(len(centres), bool)
    for a, b in pairs[few | (distance < near)].tolist():
        key = (*centres[a].round(2).tolist(), *centres[b].round(2).tolist())
        if touched[a] or touched[b] or key in tested:
            continue
        tested.add(key)
        middle = (count[a] * centres[a] + count[b] * centres[b]) / (count[a] + count[b])
        rows = _around(tree, middle, far, label, (label == a) | (label == b))
        part = field.take(rows)
        two = np.where(label[rows] == a, 0, np.where(label[rows] == b, 1, -1))
        one, centre = _settle(part, middle[None], model, 3)
        if _worth(part, one, centre, model) >= _worth(part, two, centres[[a, b]], model):
            centres[a], gone[b] = centre[0], True
            touched[[a, b]] = True
    if not gone.any():
        return None
    return _drop_empty(*_settle(field, centres[~gone], model, 2))


def _split(
    field: _Field,
    label: Ints,
    centres: Floats,
    model: ImageModel,
    tree: cKDTree,
    tested: set[tuple[float, ...]],
) -> tuple[Ints, Floats] | None:
    k, far = len(centres), float(np.median(field.reach))
    if k == 0:
        return None
    rows, left = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
    count = np.bincount(label[rows], minlength=k)
    square = ((field.xy[rows] - centres[label[rows]]) ** 2).sum(axis=1) / field.width[rows] ** 2
    spread = np.bincount(label[rows], np.minimum(square, 12), k) / np.maximum(count, 1)
    unclaimed = np.zeros(k, np.int64)
    if len(left):
        distance, cell = cKDTree(centres).query(field.xy[left])
        unclaimed = np.bincount(cell[distance < field.reach[left]], minlength=k)
    born, centres = [], centres.copy()
    # Only cells with wide clicks, or with many clicks left over beside them, can be two.
    for a in np.flatnonzero((count >= 4) & ((spread > 2.2) | (unclaimed >= 0.15 * count))).tolist():
        key = (*centres[a].round(2).tolist(), float(count[a]))
        if key in tested:
            continue
        tested.add(key)
        near = _around(tree, centres[a], far, label, label == a)
        part = field.take(near)
        values, axes = np.linalg.eigh(np.cov(part.xy.T))
        step = axes[:, -1] * np.sqrt(max(values[-1], 1e-9))
        middle = part.xy.mean(axis=0)
        two, pair = _settle(part, np.stack([middle - step, middle + step]), model, 6)
        if np.bincount(two[two >= 0], minlength=2).min() == 0:
            continue
        one = np.where(label[near] == a, 0, -1)
        if _worth(part, two, pair, model) > _worth(part, one, centres[[a]], model):
            centres[a] = pair[0]
            born.append(pair[1])
    if not born:
        return None
    return _drop_empty(*_settle(field, np.r_[centres, np.array(born)], model, 2))


def tightness(
    xy: Floats, width: Floats, reach: Floats, label: Ints, centres: Floats, model: ImageModel
) -> Floats:
    """Log density (K, len(SPREADS)) of each cell's clicks if they scatter that many times as wide as on a cell.

    Clicks beyond reach were never considered: densities are those of a t cut there. One click of each cell's
    has gone into its centre, so distances are widened and their weight reduced accordingly.
    """
    k, tail = len(centres), model.scatter.tail
    rows = np.flatnonzero(label >= 0)
    own = label[rows]
    count = np.bincount(own, minlength=k)
    square = ((xy[rows] - centres[own]) ** 2).sum(axis=1) / width[rows] ** 2
    square *= (count / np.maximum(count - 1, 1))[own]
    edge = (reach[rows] / width[rows]) ** 2
    result = np.zeros((k, len(SPREADS)))
    for column, spread in enumerate(SPREADS):
        inside = np.log(-np.expm1(-tail / 2 * np.log1p(edge / (tail * spread**2))))
        value = log_t(np.minimum(square, edge) / spread**2, width[rows] * spread, tail) - inside
        result[:, column] = np.bincount(own, value, k)
    return result * ((count - 1) / np.maximum(count, 1))[:, None]
