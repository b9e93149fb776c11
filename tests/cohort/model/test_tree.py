from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from brainmap.atlas.region_sets import DIVISIONS, Hierarchy, Selection, select_regions
from brainmap.cohort.model.tree import Divisions, adjust_tree, find_divisions, hierarchical, simes


def called_by_the_rule(p: np.ndarray, parent: np.ndarray, alpha: float) -> set[int]:
    """`hFDR.adjust` of structSSI, written anew: a family is tested by BH only if its node was rejected."""

    def family(node: int) -> set[int]:
        children = np.flatnonzero((parent == node) & np.isfinite(p))
        if not len(children):
            return set()
        order = children[np.argsort(p[children])]
        passing = [k for k, i in enumerate(order, start=1) if p[i] <= alpha * k / len(order)]
        rejected = set(order[: max(passing, default=0)].tolist())
        return rejected.union(*(family(node) for node in rejected)) if rejected else set()

    return family(-1)


def test_by_hand() -> None:
    """Root 0 with two children; the children of the one that is not called are not tested, however small their p."""
    p = np.array([0.01, 0.02, 0.20, 0.001, 0.04, 1e-9])
    parent = np.array([-1, 0, 0, 1, 1, 2])
    # Families {0}, {1, 2}, {3, 4}, {5}: BH gives 0.01; 0.04, 0.20; 0.002, 0.04; 1e-9; the path's largest counts.
    np.testing.assert_allclose(hierarchical(p, parent), [0.01, 0.04, 0.20, 0.04, 0.04, 0.20])


@pytest.mark.parametrize("seed", range(20))
def test_calls_are_those_of_the_published_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = np.array([-1, -1, *(int(rng.integers(-1, i)) for i in range(2, 40))])
    p = rng.uniform(size=40) ** rng.choice([1, 4], 40)
    p[rng.integers(0, 40, 3)] = np.nan
    adjusted = hierarchical(p, parent)
    for alpha in (0.01, 0.05, 0.1, 0.3, 0.9):
        called = set(np.flatnonzero(np.nan_to_num(adjusted, nan=2) <= alpha).tolist())
        assert called == called_by_the_rule(p, parent, alpha)


def test_below_what_is_not_tested_nothing_is() -> None:
    found = hierarchical(np.array([np.nan, 0.001, 0.01]), np.array([-1, 0, -1]))
    assert np.isnan(found[:2]).all() and found[2] == 0.01


def test_simes() -> None:
    assert simes(np.array([0.01, 0.2, np.nan, 0.04])) == pytest.approx(min(0.03, 0.06, 0.2))
    assert np.isnan(simes(np.array([np.nan])))


def two_divisions(of: list[int]) -> Divisions:
    return Divisions(np.array([1, 2]), ("A", "B"), ("a", "b"), np.array(of))


def test_regions_are_called_only_in_divisions_that_are() -> None:
    p = np.array([0.001, 0.004, 0.03, 0.03, 0.9, 0.2])
    family = np.array([True] * 5 + [False])
    q, q_division = adjust_tree(p, family, two_divisions([0, 0, 1, 1, 1, 0]), np.array([0.002, 0.6]))
    # Divisions: 2 x min(0.002, Simes 0.002) = 0.004 and 2 x Simes(0.03, 0.03, 0.9) = 0.09.
    np.testing.assert_allclose(q_division, [0.008, 0.09])
    np.testing.assert_allclose(q[:2], [0.008, 0.008])
    assert (q[2:5] >= 0.09).all() and q[5] == 1
    flat = stats.false_discovery_control(p[:5])
    assert (q[:2] > flat[:2]).all() or (q[:2] <= 0.05).all()


def test_a_division_without_regions_in_the_family_is_not_tested() -> None:
    q, q_division = adjust_tree(
        np.array([0.01, 0.02, np.nan]),
        np.array([True, True, False]),
        two_divisions([0, 0, 1]),
        np.array([0.5, 1e-9]),
    )
    assert np.isnan(q_division[1]) and np.isnan(q[2]) and np.isfinite(q[:2]).all()


def test_without_differences_the_tree_is_as_quiet_as_said() -> None:
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(10), 20)
    names = tuple(map(str, range(10)))
    divisions = Divisions(np.arange(10), names, names, of)
    any_called = 0
    for _ in range(400):
        z = rng.normal(size=200) + rng.normal(size=10)[of] * 0.5
        p = 2 * stats.norm.sf(np.abs(z) / np.sqrt(1.25))
        sums = np.array([z[of == d].sum() for d in range(10)]) / np.sqrt(20 + 400 * 0.25)
        q, q_division = adjust_tree(p, np.ones(200, bool), divisions, 2 * stats.norm.sf(np.abs(sums)))
        any_called += bool((q <= 0.05).any() or (q_division <= 0.05).any())
    assert any_called <= 0.05 * 400 + 2 * np.sqrt(400 * 0.05 * 0.95)


def hierarchy(rows: list[tuple[int, str, int, int]]) -> Hierarchy:
    ids, acronym, parent, depth = zip(*rows, strict=True)
    return Hierarchy(
        np.array(ids), acronym, acronym, np.array(parent), np.array(depth), np.ones(len(ids), dtype=bool)
    )


def test_the_divisions_of_the_allen_atlas_are_taken_where_there_are(tmp_path: Path) -> None:
    rows = [(1, "root", 0, 0)]
    rows += [(10 + i, name, 1, 1) for i, name in enumerate(DIVISIONS)]
    rows += [
        (100 + 10 * i + k, f"{name}{k}", 10 + i, 2) for i, name in enumerate(DIVISIONS[:5]) for k in range(3)
    ]
    tree = hierarchy(rows)
    regions = select_regions(tree, "2")
    found = find_divisions(tree, regions)
    assert found is not None and found.acronym == DIVISIONS
    assert [found.acronym[i] for i in found.of[:3]] == ["Isocortex"] * 3 or found.of.min() >= 0
    few = find_divisions(
        tree, select_regions(tree, ",".join(f"{DIVISIONS[i]}{k}" for i in range(3) for k in range(3)))
    )
    assert few is not None and few.acronym == DIVISIONS[:3] and few.of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_another_atlas_is_parted_where_it_branches() -> None:
    rows = [(1, "root", 0, 0), (2, "grey", 1, 1), *((10 + i, f"D{i}", 2, 2) for i in range(4))]
    rows += [(100 + 10 * i + k, f"D{i}{k}", 10 + i, 3) for i in range(4) for k in range(5)]
    tree = hierarchy(rows)
    found = find_divisions(tree, select_regions(tree, "leaf"))
    assert found is not None and found.acronym == ("D0", "D1", "D2", "D3")
    assert find_divisions(tree, select_regions(tree, "all")) is None


def test_sets_of_ones_own_have_no_divisions() -> None:
    tree = hierarchy([(1, "root", 0, 0), *((10 + i, f"R{i}", 1, 1) for i in range(6))])
    sets = Selection(np.array([-1]), ("mine",), ("R0",), (np.array([1]),), False, "mine.csv")
    assert find_divisions(tree, sets) is None and find_divisions(tree, select_regions(tree, "leaf")) is None
