from __future__ import annotations

import networkx
import numpy as np

from brainmap.cohort.networks.modules import densest, find_modules, modularity, modularity_test, rewire


def planted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    label = np.repeat([0, 1, 2], [12, 10, 8])
    chance = np.where(label[:, None] == label, 0.6, 0.05)
    linked = np.triu(rng.random(chance.shape) < chance, 1)
    return linked | linked.T, label


def test_modularity_is_newmans() -> None:
    linked, label = planted(np.random.default_rng(0))
    graph = networkx.from_numpy_array(linked.astype(int))
    parts = [set(np.flatnonzero(label == k).tolist()) for k in range(3)]
    np.testing.assert_allclose(modularity(linked, label), networkx.community.modularity(graph, parts))


def test_planted_modules_are_found_as_well_as_another_program_finds_them() -> None:
    rng = np.random.default_rng(1)
    linked, label = planted(rng)
    found = find_modules(linked, rng)
    np.testing.assert_array_equal(found, label)
    graph = networkx.from_numpy_array(rewire(linked, rng).astype(int))
    other = networkx.community.louvain_communities(graph, seed=1)
    own = find_modules(networkx.to_numpy_array(graph).astype(bool), rng)
    mine = modularity(networkx.to_numpy_array(graph).astype(bool), own)
    assert mine > networkx.community.modularity(graph, other) - 0.03


def test_rewiring_keeps_degrees_and_breaks_modules() -> None:
    rng = np.random.default_rng(2)
    linked, label = planted(rng)
    new = rewire(linked, rng)
    np.testing.assert_array_equal(new.sum(axis=0), linked.sum(axis=0))
    assert (new == new.T).all() and not new.diagonal().any()
    assert modularity(new, label) < 0.15 < modularity(linked, label)


def test_the_densest_network_has_as_many_edges_as_asked_for() -> None:
    r = np.corrcoef(np.random.default_rng(3).normal(0, 1, (20, 8)))
    linked = densest(r, 0.1)
    assert linked.sum() == 2 * round(0.1 * 190) and (
        r[linked].min() >= np.sort(r[np.triu_indices(20, 1)])[-19]
    )
    assert not densest(-np.ones((5, 5)), 0.5).any()


def test_correlated_animals_are_more_modular_than_shuffled_ones_and_noise_is_not() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 1, (10, 24))
    common = np.repeat(rng.normal(0, 1, (10, 3)), 8, axis=1)
    true = modularity_test(common + 0.4 * noise, 0.25, 19)
    assert true.p_shuffled == 0.05 and true.p_rewired == 0.05
    assert [len(set(true.label[k : k + 8])) for k in (0, 8, 16)] == [1, 1, 1]
    assert modularity_test(noise, 0.25, 19).p_shuffled > 0.05
