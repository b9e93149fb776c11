"""Fine-tuning in miniature: crops keep their targets, it learns, it resumes, it forgets nothing it should not."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from brainmap.errors import DataError, NotFoundError, UsageError  # noqa: E402
from brainmap.gt.truth import GroundTruth  # noqa: E402
from brainmap.tiles.tiles import Tiles, write_tiles  # noqa: E402
from brainmap.train.judge.predict import TilePoints, predict_tiles  # noqa: E402
from brainmap.train.judge.scores import Scored, TruePoints, sweep  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.finetune import FinetuneConfig, finetune, finetune_network, steps_for  # noqa: E402
from brainmap.train.learn.loop import CHECKPOINT, load_network  # noqa: E402
from brainmap.train.learn.pretrain import PretrainConfig  # noqa: E402
from brainmap.train.learn.samples import GridSettings, net_volume, save_volumes  # noqa: E402
from brainmap.train.learn.tile_samples import TileSamples, prepare_tiles  # noqa: E402
from brainmap.train.recipe_settings import Recipe  # noqa: E402
from brainmap.train.tissue.tissue import TissueConfig, simulate  # noqa: E402

GRID = GridSettings()
NETWORK = CenterNetConfig(slices=3, widths=(8, 12))
SIZE = 132
TINY = FinetuneConfig(
    steps=8, crop=32, batch=4, warm_up=2, average=0.8, validation=0.34, check_every=3, patience=0, scales=(1.0,)
)  # fmt: skip


def section(seed: int, voxel_um: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A dark section with bright round cells of 10 um, and their places x, y."""
    rng = np.random.default_rng(seed)
    steps = np.arange(12, SIZE - 11, 18)
    xy = np.array([(x, y) for x in steps for y in steps], float) + rng.uniform(-4, 4, (len(steps) ** 2, 2))
    xy = xy[rng.random(len(xy)) < 0.6]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = 0.3 + 0.03 * rng.standard_normal((SIZE, SIZE))
    for x, y in xy:
        image += 0.35 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (4 / voxel_um) ** 2))
    return np.clip(image, 0, 1).astype(np.float32), xy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiles, GroundTruth]:
    """Three sections of three slices, and every cell of them."""
    made = [section(seed) for seed in range(3)]
    columns = {
        "image_id": [f"t{i}" for i in range(3)],
        "brain": ["b"] * 3,
        "z": [0, 1, 2],
        "voxel_um": np.tile([4.0, 2.0, 2.0], (3, 1)),
    }
    tiles = write_tiles(tmp_path_factory.mktemp("data") / "tiles", columns, [image for image, _ in made])
    names = np.repeat([f"t{i}" for i in range(3)], [len(xy) for _, xy in made])
    shapes = {f"t{i}": (SIZE, SIZE) for i in range(3)}
    return tiles, GroundTruth.from_points(names, np.concatenate([xy for _, xy in made]), shapes, sigma_px=1.0)


def fresh(stride: int = 1) -> CenterNet:
    torch.manual_seed(0)
    return CenterNet(replace(NETWORK, stride=stride))


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_network(path)[0].state_dict().items()}


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_targets_stay_on_their_cells_however_a_crop_is_turned(
    stride: int, data: tuple[Tiles, GroundTruth]
) -> None:
    tiles, truth = data
    network = replace(NETWORK, stride=stride)
    prepared = prepare_tiles(tiles, truth, network, GRID, 10.0, (0.8, 1.0, 1.3))
    samples = TileSamples(prepared, 64, network, on_cells=0.5)
    batch = samples.draw_batch(24, np.random.default_rng(0))
    assert batch.image.shape == (24, 3, 64, 64)
    assert batch.target.shape == batch.weight.shape == (24, 1, 64 // stride, 64 // stride)
    assert float(batch.image[:, [0, 2]].abs().max()) == 0
    index, offset = batch.index.numpy(), batch.offset.numpy()
    assert len(index) > 50
    assert np.abs(offset).max() <= 0.5 + 1e-6
    # The image is bright, and the soft map high, at the place that cell and offset decode to.
    yx = (index[:, 1:] + 0.5 + offset) * stride - 0.5
    nearest = np.clip(np.rint(yx).astype(int), 0, 63)
    assert np.median(batch.image[index[:, 0], 1, nearest[:, 0], nearest[:, 1]]) > 0.25
    at_cell = batch.target[index[:, 0], 0, index[:, 1], index[:, 2]].numpy()
    assert at_cell.mean() > 4 * float(batch.target.mean())
    assert (at_cell > 0).all()


def test_beyond_a_tile_nothing_is_known(data: tuple[Tiles, GroundTruth]) -> None:
    tiles, truth = data
    samples = TileSamples(prepare_tiles(tiles, truth, NETWORK, GRID, 10.0), 160, NETWORK)
    batch = samples.draw_batch(4, np.random.default_rng(0))
    assert set(np.unique(batch.weight.numpy())) == {0.0, 1.0}
    assert float((batch.image[:, 1:2] * (1 - batch.weight)).abs().max()) == 0
    assert int(batch.weight.sum()) <= 4 * SIZE**2


def test_undecided_candidates_are_trusted_less(data: tuple[Tiles, GroundTruth]) -> None:
    tiles, truth = data
    unsure = replace(truth, posterior=np.where(truth.image == 0, 0.5, 1.0))
    prepared = prepare_tiles(tiles, unsure, NETWORK, GRID, 10.0, doubt=0.75)
    assert prepared[0][0].weight.min() == pytest.approx(0.25)
    assert prepared[1][0].weight.min() == 1
    x, y = np.rint(truth.points("t0")[0][0]).astype(int)
    assert prepared[0][0].weight[y, x] == pytest.approx(0.25)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_it_learns_real_cells_from_soft_maps(
    stride: int, data: tuple[Tiles, GroundTruth], tmp_path: Path
) -> None:
    tiles, truth = data
    config = replace(
        TINY, steps=90, learning_rate=5e-3, warm_up=5, crop=64, batch=6, validation=0, offset_weight=1.0,
    )  # fmt: skip
    teaching = tiles.take(np.array([True, True, False]))
    torch.manual_seed(0)
    model = CenterNet(CenterNetConfig(slices=3, stride=stride, widths=(12, 16)))
    path = finetune_network(config, tmp_path, teaching, replace(truth, sigma_px=1.5), model, GRID)
    found = predict_tiles(load_network(path)[0], tiles.take(np.array([2])), GRID)
    xy, _, _ = truth.points("t2")
    strong = found.take(np.argsort(-found.logit)[: len(xy)])
    distance = np.sqrt(((strong.xy[:, None] - xy[None]) ** 2).sum(-1)).min(axis=1)
    assert np.mean(distance < 2.5) > 0.85


def test_interrupted_and_resumed_gives_the_same_weights(
    data: tuple[Tiles, GroundTruth], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, truth = data
    volumes = [net_volume(simulate(TissueConfig(shape=(4, 64, 64), voxel_um=(4.0, 2.0, 2.0)), 0), GRID)]
    config = replace(TINY, consistency=0.5)

    def run(work: Path) -> Path:
        return finetune_network(config, work, tiles, truth, fresh(), GRID, volumes, unlabelled=tiles)

    whole = run(tmp_path / "whole")
    from brainmap.train.learn import finetune as module

    real, calls = module.soft_map_loss, []

    def killed(*args: object) -> object:
        calls.append(1)
        # Two calls a step: tiles, and consistency.
        if len(calls) > 10:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "soft_map_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(module, "soft_map_loss", real)
    parts = run(tmp_path / "parts")
    one, other = weights(whole), weights(parts)
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("taught", [False, True])
def test_regression_heads_learn_only_what_they_are_taught(
    taught: bool, data: tuple[Tiles, GroundTruth], tmp_path: Path
) -> None:
    tiles, truth = data
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = replace(TINY, offset_weight=0.1 if taught else 0.0, validation=0)
    path = finetune_network(config, tmp_path, tiles, truth, model, GRID)
    after = torch.load(path, weights_only=True)["model"]
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert ("offset" in changed) == taught
    assert "size" not in changed
    assert {"heat", "down", "neck"} <= changed


def test_statistics_stay_where_they_are_frozen(data: tuple[Tiles, GroundTruth], tmp_path: Path) -> None:
    tiles, truth = data
    config = replace(TINY, freeze_statistics=True, validation=0)
    after = weights(finetune_network(config, tmp_path, tiles, truth, fresh(), GRID))
    for name, value in fresh().state_dict().items():
        if "running" in name:
            np.testing.assert_array_equal(after[name], value.numpy(), err_msg=name)


def test_from_disk_with_rehearsal_and_a_record(data: tuple[Tiles, GroundTruth], tmp_path: Path) -> None:
    tiles, truth = data
    save_volumes(
        tmp_path / "pool" / "volumes-0000.npz",
        [net_volume(simulate(TissueConfig(shape=(4, 64, 64), voxel_um=(4.0, 2.0, 2.0)), 0), GRID)],
    )
    start = finetune_network(replace(TINY, validation=0), tmp_path / "p", tiles, truth, fresh(), GRID)
    path = finetune(TINY, tmp_path / "t", tiles, truth, start, pool=tmp_path / "pool")
    assert '"rehearsal"' in (tmp_path / "t" / "checkpoint.json").read_text()
    assert torch.load(path, weights_only=True)["inputs"]["rehearsed_volumes"] == 1
    with pytest.raises(DataError, match="no volumes to rehearse"):
        finetune(TINY, tmp_path / "u", tiles, truth, start, pool=tmp_path)


def test_other_truth_is_other_data(data: tuple[Tiles, GroundTruth], tmp_path: Path) -> None:
    tiles, truth = data
    config = replace(TINY, steps=2, validation=0)
    finetune_network(config, tmp_path, tiles, truth, fresh(), GRID)
    moved = replace(truth, xy=truth.xy + 1)
    with pytest.raises(UsageError, match="other data"):
        finetune_network(config, tmp_path, tiles, moved, fresh(), GRID)


def test_one_slice_alone_trains_without_validation(
    data: tuple[Tiles, GroundTruth], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiles, truth = data
    path = finetune_network(replace(TINY, steps=3), tmp_path, tiles.take(np.array([1])), truth, fresh(), GRID)
    assert "one slice" in caplog.text
    assert torch.load(path, weights_only=True)["best"] is None


def test_bad_data_is_one_sentence(data: tuple[Tiles, GroundTruth], tmp_path: Path) -> None:
    tiles, truth = data

    def run(tiles: Tiles = tiles, truth: GroundTruth = truth, config: FinetuneConfig = TINY) -> None:
        finetune_network(config, tmp_path / "w", tiles, truth, fresh(), GRID)

    with pytest.raises(DataError, match="no tile to learn from"):
        run(tiles.take(np.zeros(3, bool)))
    with pytest.raises(NotFoundError, match="t2"):
        run(truth=truth.take(["t0", "t1"]))
    with pytest.raises(DataError, match="50 x 60"):
        run(truth=replace(truth, shapes=dict.fromkeys(truth.shapes, (50, 60))))
    with pytest.raises(UsageError, match="multiple of 4"):
        run(config=replace(TINY, crop=34))
    assert not (tmp_path / "w" / CHECKPOINT).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"doubt": 2.0},
        {"scales": ()},
        {"rehearsal": 0.6, "unlabelled": 0.5},
        {"no_such_key": 1},
        {"target": "maps"},
        {"epochs": -1.0},
        {"epochs": 1.0, "steps": 20, "most_steps": 10},
        {"distil": 1.5},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        FinetuneConfig.from_dict(wrong)
    assert FinetuneConfig.from_dict({"scales": [1, 2]}).scales == (1.0, 2.0)


def test_the_settings_file_holds_the_defaults(repository: Path) -> None:
    with (repository / "configs" / "finetune.toml").open("rb") as file:
        record = tomllib.load(file)
    assert FinetuneConfig.from_dict(record["finetune"]) == FinetuneConfig()
    assert set(record["finetune"]) == {f.name for f in fields(FinetuneConfig)}
    assert Recipe.read(repository / "configs" / "pretrain.toml").pretrain == PretrainConfig()


def test_exact_centres_teach_in_the_loss_of_pretraining(
    data: tuple[Tiles, GroundTruth], tmp_path: Path
) -> None:
    tiles, truth = data
    (scales,) = prepare_tiles(tiles.take(np.arange(1)), truth, NETWORK, GRID, 10.0, (1.0,), exact=True)
    cells = len(truth.accepted(str(tiles.ids[0]))[0])
    assert np.count_nonzero(scales[0].target == 1) == cells == len(scales[0].points)
    config = replace(TINY, steps=60, learning_rate=5e-3, target="centres", validation=0.0)
    torch.manual_seed(0)
    model = CenterNet(NETWORK)
    before = predict_tiles(model.eval(), tiles, GRID, 10.0)
    checkpoint = finetune_network(config, tmp_path, tiles, truth, model, GRID)
    after = predict_tiles(load_network(checkpoint)[0], tiles, GRID, 10.0)
    true = [truth.accepted(str(name))[0] for name in tiles.ids]

    def best_f1(points: TilePoints) -> float:
        """Over all thresholds: so short a training orders peaks before it gives them their height."""
        scored = Scored(points.image, points.xy, points.logit.astype(np.float64))
        cells = np.concatenate(true)
        of = np.repeat(np.arange(len(true)), [len(xy) for xy in true])
        known = TruePoints(np.arange(len(true)), of, cells, np.ones(len(cells)))
        return float(sweep(scored, [known], 3.0).f1.max())

    assert best_f1(after) > 0.97
    # Even random weights see bright spots.
    assert best_f1(before) < 0.9


def test_what_the_start_said_is_kept(data: tuple[Tiles, GroundTruth], tmp_path: Path) -> None:
    """On tissue whose truth says nothing (no cells), the heat stays where it was held."""
    tiles, truth = data
    volume = net_volume(simulate(TissueConfig(shape=(6, 64, 64), voxel_um=(4.0, 2.0, 2.0)), 1), GRID)
    stack = torch.from_numpy(volume.stack[None, 1:4].astype(np.float32))
    moved = {}
    for weight in (0.0, 20.0):
        torch.manual_seed(0)
        model = CenterNet(NETWORK).eval()
        with torch.no_grad():
            before = model(stack)[0]
        config = replace(
            TINY, steps=40, learning_rate=3e-3, target="centres", validation=0.0, freeze_statistics=True,
            distil=1.0, rehearsal=0.5, rehearsal_weight=weight,
        )  # fmt: skip
        path = finetune_network(config, tmp_path / f"{weight}", tiles, truth, model, GRID, [volume])
        with torch.no_grad():
            moved[weight] = float((load_network(path)[0](stack)[0] - before).abs().mean())
    assert moved[20.0] < 0.5 * moved[0.0]


def test_steps_follow_the_data_within_bounds(data: tuple[Tiles, GroundTruth]) -> None:
    tiles, _ = data
    config = replace(TINY, epochs=4, steps=1, most_steps=1000)
    crops = len(tiles) * (SIZE / 32) ** 2
    assert steps_for(config, tiles, GRID, 2) == np.ceil(4 * crops / 2)
    # Larger cells make larger pixels, and fewer crops of the same tiles.
    assert steps_for(replace(config, cell_diameter_um=20.0), tiles, GRID, 2) == np.ceil(crops / 2)
    assert steps_for(replace(config, steps=600), tiles, GRID, 2) == 600
    assert steps_for(replace(config, most_steps=30), tiles, GRID, 2) == 30
    assert steps_for(replace(config, epochs=0.0, steps=7), tiles, GRID, 2) == 7
