"""What the network sees in tiles, and what a crowd's doubt on old tiles says of new ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmap.crowd.loop.simulate import cells_of_tiles, write_crowd
from brainmap.crowd.sampling import SampleRequest, sample_tiles
from brainmap.crowd.sampling.doubt import LastTruth, crowd_doubt, last_truth
from brainmap.crowd.sampling.network import TileNetwork
from brainmap.crowd.sampling.strategies import statistics
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.gt.aggregate import aggregate
from brainmap.infer.detector import Detector
from brainmap.tiles.tiles import Tiles

REGIONS = ("ISO", "HPF", "STR")


@pytest.fixture(scope="module")
def network() -> TileNetwork:
    return TileNetwork(Detector.open("default"))


@pytest.fixture(scope="module")
def first(runs: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first round: tiles of two brains, a simulated crowd, its ground truth."""
    folder = tmp_path_factory.mktemp("first")
    request = SampleRequest(runs[:2], folder / "tiles", REGIONS, 48, budget=16, qc=2, datasets=1, sections=8)
    tiles = sample_tiles(request).tiles
    truths = {f"mouse{i}": runs[i] / "points.parquet" for i in range(2)}
    write_crowd(folder, tiles, cells_of_tiles(tiles, truths))
    aggregate(
        folder / "clicks.csv", folder / "gt", tiles=tiles.folder, assignments=folder / "assignments.csv"
    )
    return folder


def look_of(tiles: Tiles, i: int, network: TileNetwork):  # type: ignore[no-untyped-def]
    return network.look(tiles.image(i), tiles.columns["voxel_um"][i], 10.0)


def test_candidates_are_those_that_detection_finds_on_a_section(first: Path, network: TileNetwork) -> None:
    pytest.importorskip("torch")
    from brainmap.train.judge.predict import predict_tiles

    tiles = Tiles.open(first / "tiles").take(np.arange(4))
    found = predict_tiles(network.detector, tiles, precision="f32")
    for i in range(4):
        look, own = look_of(tiles, i, network), found.take(found.image == i)
        order = np.lexsort((look.xy[:, 0], look.xy[:, 1]))
        np.testing.assert_allclose(look.xy[order], own.xy, atol=0.02)
        np.testing.assert_allclose(look.logit[order], own.logit, atol=0.02)
        np.testing.assert_allclose(look.score[order], own.score, atol=0.01)


def test_features_have_one_length_and_tell_tiles_apart(first: Path, network: TileNetwork) -> None:
    tiles = Tiles.open(first / "tiles")
    looks = [look_of(tiles, i, network) for i in range(3)]
    assert len({look.feature.shape for look in looks}) == 1
    assert all(len(look.trait) == len(look.xy) for look in looks)
    assert np.abs(looks[0].feature - looks[1].feature).max() > 0.01
    np.testing.assert_array_equal(looks[0].feature, look_of(tiles, 0, network).feature)


def test_doubt_is_what_the_detector_expects_to_get_wrong(first: Path, network: TileNetwork) -> None:
    look = replace(look_of(Tiles.open(first / "tiles"), 0, network), score=np.array([0.9, 0.6, 0.2, 0.0]))
    assert look.doubt(0.5) == pytest.approx(0.1 + 0.4 + 0.2)
    assert look.doubt(0.7) == pytest.approx(0.1 + 0.6 + 0.2)


def test_what_was_hard_is_learnt_from_how_it_looks(first: Path, network: TileNetwork) -> None:
    tiles = Tiles.open(first / "tiles")
    spread = np.array([tiles.image(i).std() for i in range(len(tiles))])
    hard = np.rint(400 * np.maximum(spread - spread.min(), 0))
    last = LastTruth(first / "gt", frozenset(), tiles, hard)
    looks = []
    for i in range(len(tiles)):
        look = look_of(tiles, i, network)
        looks.append(np.concatenate([statistics(tiles.image(i)), [look.doubt(0.5)], look.feature]))
    doubt = crowd_doubt(last, network, 10.0, np.array(looks), np.zeros(len(tiles)))
    assert doubt.skill is not None and doubt.skill > 0.3
    assert np.corrcoef(doubt.value, hard)[0, 1] > 0.7


def test_doubt_that_cannot_be_predicted_is_said_and_not_used(
    first: Path, network: TileNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    tiles = Tiles.open(first / "tiles")
    last = LastTruth(first / "gt", frozenset(), tiles, np.full(len(tiles), 3.0))
    own = np.arange(len(tiles), dtype=float)
    size = len(statistics(tiles.image(0))) + 1 + len(look_of(tiles, 0, network).feature)
    with caplog.at_level(logging.WARNING):
        doubt = crowd_doubt(last, network, 10.0, np.zeros((len(tiles), size)), own)
    np.testing.assert_array_equal(doubt.value, own)
    assert "cannot be told from how its" in caplog.text


def test_a_second_round_takes_new_tiles_by_the_first_ones_truth(
    runs: tuple[Path, ...], first: Path, tmp_path: Path
) -> None:
    request = SampleRequest(
        runs[:2], tmp_path / "next", REGIONS, 48, 12, "uncertain", 2, 1, sections=8, truth=first / "gt"
    )
    sampled = sample_tiles(request)
    old = set(Tiles.open(first / "tiles").ids)
    assert not old & set(sampled.tiles.ids)
    assert sampled.pool.annotated == 16
    assert sampled.doubt is not None and sampled.doubt.skill is not None
    assert "Doubt" in (tmp_path / "next" / "report.html").read_text()


def test_truth_that_cannot_be_used_says_why(
    runs: tuple[Path, ...], first: Path, network: TileNetwork, tmp_path: Path
) -> None:
    request = SampleRequest(runs[:1], tmp_path / "t", REGIONS, 48, truth=first / "gt")
    with pytest.raises(NotFoundError, match="no complete ground-truth folder"):
        last_truth(replace(request, truth=first))
    with pytest.raises(NotFoundError, match=r"are not at .* any more; name their folder with --truth-tiles"):
        last_truth(replace(request, truth_tiles=tmp_path / "gone"))
    aggregate(first / "clicks.csv", tmp_path / "bare")
    with pytest.raises(UsageError, match="does not say which tiles"):
        last_truth(replace(request, truth=tmp_path / "bare"))
    last = last_truth(request)
    few = replace(last, tiles=last.tiles.take(np.arange(3)), undecided=last.undecided[:3])
    with pytest.raises(DataError, match="holds 3 tiles; to learn"):
        crowd_doubt(few, network, 10.0, np.zeros((1, 1)), np.zeros(1))
