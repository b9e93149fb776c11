"""A calibration that is there already, moved by a few tiles as far as they ask for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brainmap.train.judge.predict import Knots, calibrated

__all__ = ["shifted", "simplest"]


def simplest(
    crossed: dict[str, NDArray[np.float64]], correct: NDArray[np.bool_], group: NDArray, best: str
) -> str:
    """The first of the curves whose log loss exceeds the best one's by a standard error over groups at most."""
    member = np.unique(group, return_inverse=True)[1]
    loss = {name: -np.log(np.where(correct, p, 1 - p)) for name, p in crossed.items()}
    for name in crossed:
        excess = np.bincount(member, loss[name] - loss[best])
        error = np.sqrt(len(excess) * excess.var(ddof=1)) if len(excess) > 1 else 0.0
        if excess.sum() <= error:
            return name
    return best


def shifted(logit: NDArray, correct: NDArray[np.bool_], prior: Knots) -> Knots:
    """A curve with the log odds of its values shifted and stretched, as far as the detections ask for it.

    Logistic regression on the prior's log odds, with a normal prior on the shift (0, 1.5) and on the stretch
    (1, 0.3), so that without data nothing changes.
    """
    x = _log_odds(calibrated(logit, prior))
    features = np.column_stack([np.ones(len(x)), x])
    mean, precision = np.array([0.0, 1.0]), np.diag([1.5**-2, 0.3**-2])
    weight = mean.copy()
    for _ in range(30):
        p = 1 / (1 + np.exp(-features @ weight))
        slope = features.T @ (p - correct) + precision @ (weight - mean)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + precision
        step = np.linalg.solve(curvature, slope)
        weight -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    at, value = np.asarray(prior, np.float64).T
    moved = 1 / (1 + np.exp(-(weight[0] + max(weight[1], 0.1) * _log_odds(value))))
    moved = np.maximum.accumulate(np.clip(moved, 0.001, 0.999))
    return tuple((float(a), round(float(v), 4)) for a, v in zip(at, moved, strict=True))


def _log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(p, 0.001, 0.999)
    return np.log(inside / (1 - inside))
