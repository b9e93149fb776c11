"""Candidates of the study method: HDBSCAN on the clicks of an image, clusters split by a Gaussian mixture.

The rules for few clicks are written out here, because HDBSCAN has none: one click raises, two are noise, and a
single tight group is noise as well. `min_samples` follows the hdbscan package: the point itself not counted
(scikit-learn's value is one higher).
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial import cKDTree

from brainmap.gt.settings import GtSettings

__all__ = ["merge_repeats", "study_candidates"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def merge_repeats(xy: Floats, worker: Ints, radius: float) -> tuple[Floats, Ints, Ints]:
    """Merge one worker's clicks closer than `radius`: merged xy (M, 2), worker (M,), index (N,) into them."""
    index = np.arange(len(xy))
    if len(xy) > 1 and radius > 0:
        # A third axis keeps workers apart: only one worker's clicks can be within the radius.
        space = np.c_[xy, worker * (4 * radius + 1)]
        pairs = cKDTree(space).query_pairs(radius, output_type="ndarray")
        for a, b in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
            low, high = sorted((index[a], index[b]))
            index[index == high] = low
    _, first, index = np.unique(index, return_index=True, return_inverse=True)
    count = np.bincount(index, minlength=len(first))
    centre = np.stack([np.bincount(index, xy[:, k], len(first)) for k in (0, 1)], axis=1)
    return centre / np.maximum(count, 1)[:, None], worker[first], index


def study_candidates(xy: Floats, worker: Ints, settings: GtSettings) -> tuple[Floats, Ints]:
    """Candidates of one image.

    Parameters
    ----------
    xy : (N, 2) float64
        Clicks, x, y.
    worker : (N,) int
        Their workers.

    Returns
    -------
    centres : (C, 2) float64
        Mean of each candidate's clicks.
    label : (N,) int
        Candidate of every click; clicks of noise are candidates of their own.
    """
    merged, who, index = merge_repeats(xy, worker, settings.repeat_px)
    cluster = _clusters(merged, len(np.unique(who)), settings)
    label = np.full(len(merged), -1)
    n = 0
    for k in range(cluster.max(initial=-1) + 1):
        rows = np.flatnonzero(cluster == k)
        parts = _split(merged[rows], who[rows], settings)
        label[rows] = parts + n
        n += parts.max(initial=-1) + 1
    noise = np.flatnonzero(label < 0)
    label[noise] = n + np.arange(len(noise))
    label = label[index]
    n += len(noise)
    count = np.maximum(np.bincount(label, minlength=n), 1)
    centres = np.stack([np.bincount(label, xy[:, k], n) for k in (0, 1)], axis=1) / count[:, None]
    return centres, label


def _clusters(xy: Floats, n_workers: int, settings: GtSettings) -> Ints:
    """HDBSCAN labels, -1 noise. 0 clicks: none; few clicks, or all within `single_px`: see below."""
    n = len(xy)
    if n < 2:
        return np.zeros(n, np.int64)
    if np.sqrt(((xy - np.median(xy, axis=0)) ** 2).sum(axis=1)).max() <= settings.single_px:
        return np.zeros(n, np.int64)  # one cell on the tile
    if n < 2 * settings.min_cluster_size:
        # Too few clicks for two clusters: those within reach of each other are one candidate, the others stand alone.
        return fcluster(linkage(xy, "single"), settings.single_px, "distance").astype(np.int64) - 1
    label = _hdbscan(xy, n_workers, settings, single=False)
    if (label < 0).mean() > 0.5:
        # One cell among strays looks like noise to HDBSCAN unless it may find a single cluster.
        one = _hdbscan(xy, n_workers, settings, single=True)
        label = one if (one < 0).sum() < (label < 0).sum() else label
    return label


def _hdbscan(xy: Floats, n_workers: int, settings: GtSettings, *, single: bool) -> Ints:
    import hdbscan  # slow to import, and needed by this method only

    # A cell has no more clicks than the image has workers: of two, a pair of clicks is a cluster.
    clusterer = hdbscan.HDBSCAN(
        min_cluster_size=min(settings.min_cluster_size, max(n_workers, 2)),
        min_samples=min(settings.min_samples, max(n_workers - 1, 1), len(xy) - 1),
        allow_single_cluster=single,
        cluster_selection_epsilon=settings.repeat_px,  # clusters closer than this are one
        core_dist_n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-learn's renaming, inside hdbscan
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(clusterer.fit(xy).labels_, np.int64)


def _split(xy: Floats, worker: Ints, settings: GtSettings) -> Ints:
    """Parts of one cluster: as many as its workers clicked in it, no two closer than a repeat."""
    per_worker = np.sort(np.bincount(np.unique(worker, return_inverse=True)[1]))[::-1]
    # A worker who clicked k times in it saw k cells; one worker among many may be mistaken.
    believed = min(len(per_worker), max(2, int(np.ceil(0.2 * len(per_worker))))) - 1
    k = min(int(per_worker[believed]), len(np.unique(xy, axis=0)))
    if k < 2:
        return np.zeros(len(xy), np.int64)
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(k, covariance_type="spherical", random_state=0, reg_covar=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mixture that did not converge is still a split
        part = mixture.fit_predict(xy)
    _, part = np.unique(part, return_inverse=True)
    centres = np.stack([np.bincount(part, xy[:, a]) / np.bincount(part) for a in (0, 1)], axis=1)
    if len(centres) < 2:
        return np.zeros(len(xy), np.int64)
    # What splits one cell is merged, or a worker would count twice for it.
    same = fcluster(linkage(centres, "single"), settings.repeat_px, "distance")
    return np.asarray(np.unique(same[part], return_inverse=True)[1], np.int64)
