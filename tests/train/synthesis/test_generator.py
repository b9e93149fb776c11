"""The generator of backgrounds: what the study specifies, exact resumption, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from brainmap.errors import DataError, NotFoundError, UsageError  # noqa: E402
from brainmap.tiles.tiles import Tiles, write_tiles  # noqa: E402
from brainmap.train.synthesis import generator as module  # noqa: E402
from brainmap.train.synthesis.generator import (  # noqa: E402
    Generator,
    GeneratorConfig,
    load_generator,
    read_generator_config,
    train_generator,
)
from brainmap.train.synthesis.generator_data import (  # noqa: E402
    DiscSource,
    History,
    RandomDiscs,
    RealCrops,
    mask_and_cells,
)
from brainmap.train.synthesis.generator_networks import BackgroundNet, Critic, Noise, gradient_penalty  # noqa: E402
from brainmap.train.synthesis.placement import Placement  # noqa: E402

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = GeneratorConfig(
    size=16, discs=(20.0, 60.0), radius_px=(1.0, 3.0), widths=(6, 8), critic_widths=(6, 8), latent=3, batch=2,
    steps=9, history=8, average=0.9, save_every=3, sample_every=3, log_every=2,
)  # fmt: skip


def tile_folder(folder: Path, images: list[np.ndarray]) -> Tiles:
    names = [f"t{n}" for n in range(len(images))]
    columns = {
        "image_id": names, "brain": names, "z": [0] * len(names), "voxel_um": [(4.0, 1.0, 1.0)] * len(names),
    }  # fmt: skip
    return write_tiles(folder, columns, [image.astype(np.float32) for image in images])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    """Grey with grain, two sizes."""
    rng = np.random.default_rng(0)
    images = [rng.normal(0.4, 0.15, shape).clip(0, 1) for shape in ((40, 32), (24, 24))]
    return tile_folder(tmp_path_factory.mktemp("real") / "tiles", images)


@pytest.fixture(scope="module")
def whole(tiles: Tiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training without an interruption."""
    return train_generator(TINY, tmp_path_factory.mktemp("whole"), tiles).parent


def untrained(widths: tuple[int, ...] = (6, 8, 8), look: str = "study") -> Generator:
    torch.manual_seed(0)
    config = replace(TINY, widths=widths, look=look)
    return Generator(config, BackgroundNet(widths, config.latent))


def state_of(path: Path) -> dict[str, np.ndarray]:
    record = torch.load(path, weights_only=True)
    return {
        f"{part}.{name}": value.numpy()
        for part in ("generator", "average", "critic")
        for name, value in record[part].items()
    } | {"history": record["history"].numpy()}


def log_of(work: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


# What the study specifies


def test_defaults_are_the_studys() -> None:
    config = GeneratorConfig()
    assert (config.size, config.batch, config.critic_steps, config.penalty) == (512, 4, 2, 10.0)
    assert (config.generator_rate, config.critic_rate, config.betas) == (1e-4, 2e-4, (0.5, 0.999))
    assert (config.history, config.radius_px, config.look) == (500, (1.0, 8.0), "study")


def test_the_commented_settings_file_holds_the_defaults() -> None:
    assert read_generator_config(CONFIGS / "generator.toml") == GeneratorConfig()
    text = (CONFIGS / "generator.toml").read_text()
    assert all(f"\n{name} = " in text for name in GeneratorConfig().to_dict())


def test_the_settings_for_a_cpu_are_valid(tmp_path: Path) -> None:
    text = (CONFIGS / "generator.toml").read_text()
    small = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    (tmp_path / "small.toml").write_text("\n".join(["[generator]", *small]))
    assert read_generator_config(tmp_path / "small.toml").size == 64


def test_gradient_penalty_of_a_linear_critic() -> None:
    class Linear(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 3 * image[:, 0, 0, 0] + 4 * image[:, 0, 1, 1]

    real, fake = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    penalty = gradient_penalty(Linear(), real, fake, torch.rand(3, 1, 1, 1))  # type: ignore[arg-type]
    assert penalty.item() == pytest.approx((5 - 1) ** 2)


def test_gradient_penalty_lies_between_real_and_fake() -> None:
    seen = []

    class Square(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image.detach())
            return image.square().sum(dim=(1, 2, 3)) / 2

    real, fake = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    mix = torch.tensor([0.25, 1.0]).reshape(2, 1, 1, 1)
    penalty = gradient_penalty(Square(), real, fake, mix)  # type: ignore[arg-type]
    torch.testing.assert_close(seen[0][0], 0.25 * real[0] + 0.75 * fake[0])
    torch.testing.assert_close(seen[0][1], real[1])
    norms = seen[0].flatten(1).norm(dim=1)
    assert penalty.item() == pytest.approx(((norms - 1) ** 2).mean().item(), rel=1e-5)


def test_the_critic_judges_each_image_by_itself() -> None:
    torch.manual_seed(0)
    critic = Critic((6, 8))
    images = torch.rand(3, 1, 32, 48)
    together = critic(images)
    assert together.shape == (3,)
    torch.testing.assert_close(together, torch.cat([critic(image[None]) for image in images]))


def test_the_critics_score_is_the_mean_over_patches() -> None:
    torch.manual_seed(0)
    critic = Critic((6, 8))
    image = torch.rand(1, 1, 32, 48)
    torch.testing.assert_close(critic(image), critic.layers(2 * image - 1).mean().reshape(1))


# Cells


def test_study_cells_are_white_discs() -> None:
    mask, cells = mask_and_cells(
        np.array([[10.0, 5.0], [0.0, 19.0]]),
        np.array([3.0, 2.0]),
        (20, 30),
        "study",
        np.random.default_rng(0),
    )
    y, x = np.mgrid[:20, :30]
    expected = (np.hypot(x - 10, y - 5) <= 3) | (np.hypot(x, y - 19) <= 2)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(cells, mask)
    assert mask.dtype == cells.dtype == np.float32


def test_soft_cells_are_half_as_opaque_at_the_radius() -> None:
    mask, cells = mask_and_cells(
        np.array([[20.0, 15.0]]), np.array([6.0]), (31, 41), "soft", np.random.default_rng(3)
    )
    brightness = cells.max()
    assert 0.4 <= brightness <= 0.85
    assert (cells[mask > 0] == brightness).all() and (cells[mask == 0] == 0).all()
    assert 0.45 <= mask.max() <= 0.85 and mask.argmax() == 15 * 41 + 20
    assert mask[15, 26] == pytest.approx(mask.max() / 2, rel=0.02)
    assert (np.diff(mask[15, 20:]) <= 0).all() and mask[0, 0] == 0


def test_no_background_hides_a_soft_cell() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask, _ = mask_and_cells(np.array([[15.0, 15.0]]), np.array([6.0]), (31, 31), "soft", rng)
        assert mask[15, 15] >= 0.49


def test_of_overlapping_soft_cells_the_more_opaque_is_seen() -> None:
    rng = np.random.default_rng(1)
    mask, cells = mask_and_cells(
        np.array([[10.0, 10.0], [16.0, 10.0]]), np.array([5.0, 5.0]), (21, 27), "soft", rng
    )
    assert len(np.unique(cells)) == 3
    alone = [
        mask_and_cells(np.array([[x, 10.0]]), np.array([5.0]), (21, 27), "soft", np.random.default_rng(1))[0]
        for x in (10.0, 16.0)
    ]
    assert mask[10, 10] >= 0.45 and mask[10, 16] >= 0.45 and mask.max() <= 0.85
    assert all(image.shape == mask.shape for image in alone)


def test_cells_outside_the_tile_are_left_out() -> None:
    far = np.array([[-50.0, 5.0], [5.0, 90.0]])
    mask, _ = mask_and_cells(far, np.array([4.0, 4.0]), (20, 20), "study", np.random.default_rng(0))
    assert mask.sum() == 0


def test_random_discs_have_the_density_and_the_radii_asked_for() -> None:
    rng = np.random.default_rng(0)
    drawn = [RandomDiscs((5.0, 15.0), (1.0, 8.0)).sample((100, 200), rng) for _ in range(200)]
    assert np.mean([len(radii) for _, radii in drawn]) == pytest.approx(20, rel=0.1)
    centres, radii = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    assert radii.min() >= 1 and radii.max() <= 8 and radii.mean() == pytest.approx(4.5, abs=0.1)
    assert centres[:, 0].max() == pytest.approx(199.5, abs=0.5) and centres[:, 0].min() >= -0.5
    assert centres[:, 1].max() == pytest.approx(99.5, abs=0.5)


# Real crops


def test_crops_are_windows_of_the_tiles_turned_and_mirrored(tmp_path: Path) -> None:
    image = np.arange(64 * 2).reshape(8, 16) / 255
    real = RealCrops(tile_folder(tmp_path / "t", [image]), 8, "crop")
    rng = np.random.default_rng(0)
    drawn = {np.ascontiguousarray(real._one(rng)).tobytes() for _ in range(1200)}
    windows = [np.rint(image[:, x : x + 8] * 255).astype(np.uint8) for x in range(9)]
    turned = {
        np.ascontiguousarray(np.rot90(w, k)[:, ::s]).tobytes()
        for w in windows for k in range(4) for s in (1, -1)
    }  # fmt: skip
    assert drawn == turned


def test_every_pixel_of_the_set_is_as_likely(tmp_path: Path) -> None:
    real = RealCrops(tile_folder(tmp_path / "t", [np.zeros((16, 16)), np.ones((32, 48))]), 16, "crop")
    rng = np.random.default_rng(0)
    bright = np.mean([real.draw(1, rng).mean().item() > 0.5 for _ in range(400)])
    assert bright == pytest.approx(6 / 7, abs=0.05)


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_small_tiles_are_enlarged_to_the_size(tmp_path: Path, fit: str) -> None:
    ramp = np.tile(np.linspace(0.2, 0.8, 20), (18, 1))
    real = RealCrops(tile_folder(tmp_path / "t", [ramp]), 32, fit)
    assert min(real.images[0].shape) == 32
    assert real.images[0].min() >= 0.19 * 255 and real.images[0].max() <= 0.81 * 255


def test_resized_tiles_are_cropped_at_the_centre(tmp_path: Path) -> None:
    image = np.zeros((32, 96))
    image[:, 32:64] = 0.5
    (resized,) = RealCrops(tile_folder(tmp_path / "t", [image]), 16, "resize").images
    assert resized.shape == (16, 16)
    assert (resized[:, 2:-2] == 128).all()


def test_grey_steps_do_not_betray_real_tiles(tmp_path: Path) -> None:
    real = RealCrops(tile_folder(tmp_path / "t", [np.full((64, 64), 100 / 255)]), 64, "crop")
    values = real.draw(4, np.random.default_rng(0)).numpy() * 255
    assert values.std() == pytest.approx(1 / np.sqrt(12), rel=0.03)
    assert 99.5 <= values.min() and values.max() <= 100.5001


def test_no_tiles_is_one_sentence(tiles: Tiles, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tiles"):
        train_generator(TINY, tmp_path, tiles.take(np.zeros(len(tiles), bool)))


# History


def test_history_keeps_and_gives_back_older_images() -> None:
    history, rng = History(4, 8), np.random.default_rng(0)
    first = torch.full((4, 1, 8, 8), 0.2)
    assert torch.equal(history.mix(first, 0.5, rng), first)
    older = 0
    for _ in range(50):
        mixed = history.mix(torch.full((2, 1, 8, 8), 0.8), 0.5, rng)
        older += int((mixed.mean(dim=(1, 2, 3)) < 0.5).sum())
    # Each of the four goes out once, replaced by a newer one.
    assert older == 4
    assert history.count == 4 and (history.images == round(0.8 * 255)).all()


def test_share_of_older_images() -> None:
    history, rng = History(500, 2), np.random.default_rng(0)
    history.mix(torch.zeros(500, 1, 2, 2), 0.5, rng)
    mixed = history.mix(torch.ones(400, 1, 2, 2), 0.5, rng)
    assert (mixed.mean(dim=(1, 2, 3)) > 0.5).float().mean().item() == pytest.approx(0.6, abs=0.1)


def test_no_history() -> None:
    fresh = torch.rand(2, 1, 8, 8)
    assert torch.equal(History(0, 8).mix(fresh, 0.5, np.random.default_rng(0)), fresh)


# Backgrounds


@pytest.mark.parametrize("shape", [(16, 16), (37, 50), (5, 3), (64, 48)])
def test_backgrounds_of_any_size(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.float32)
    mask[2:4, 1:3] = 1
    background = untrained().background(mask, mask, 7)
    assert background.shape == shape and background.dtype == np.float32
    assert background.min() >= 0 and background.max() <= 1 and background.std() > 0


def test_a_seed_decides_the_background() -> None:
    generator, mask = untrained(), np.zeros((24, 24), np.float32)
    first = generator.background(mask, mask, 1)
    np.testing.assert_array_equal(first, generator.background(mask, mask, 1))
    assert np.abs(first - generator.background(mask, mask, 2)).mean() > 0.01


def test_the_background_depends_on_mask_and_visible_cells() -> None:
    generator, mask = untrained(), np.zeros((24, 24), np.float32)
    disc = mask.copy()
    disc[8:12, 8:12] = 1
    first = generator.background(mask, mask, 1)
    dark, bright = generator.background(disc, mask, 1), generator.background(disc, disc, 1)
    assert not np.array_equal(first, dark) and not np.array_equal(dark, bright)
    # What the mask hides of the cell image does not matter.
    np.testing.assert_array_equal(bright, generator.background(disc, np.ones_like(mask), 1))


def test_nothing_is_averaged_over_the_image() -> None:
    torch.manual_seed(0)
    net = BackgroundNet((6, 8, 8), 3).eval()
    noise = Noise.draw(1, (64, 64), 3, 3, torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 64, 64)
    other = mask.clone()
    other[..., 48:] = 1
    with torch.no_grad():
        difference = (net(mask, mask, noise) - net(other, mask, noise)).abs()[0, 0]
    assert (difference[:, :24] == 0).all() and difference[:, 48:].max() > 0


def test_fresh_backgrounds_show_no_checkerboard() -> None:
    generator, mask = untrained(), np.zeros((64, 64), np.float32)
    power = np.mean(
        [np.abs(np.fft.fft2(generator.background(mask, mask, seed) - 0.5)) ** 2 for seed in range(12)], axis=0
    )
    # Alternating rows or columns are one frequency; it must not stand out from its neighbours.
    assert power[32, 0] < 4 * power[30:35, 1:4].mean()
    assert power[0, 32] < 4 * power[1:4, 30:35].mean()


@pytest.mark.parametrize(
    ("mask", "cells", "message"),
    [
        (np.zeros((8, 8)), np.zeros((8, 9)), "one shape"),
        (np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), "one shape"),
        (np.zeros((0, 8)), np.zeros((0, 8)), "one shape"),
        (np.full((8, 8), 255), np.zeros((8, 8)), "the mask holds"),
        (np.zeros((8, 8)), np.full((8, 8), np.nan), "the cell image holds"),
    ],
)
def test_a_wrong_mask_or_cell_image(mask: np.ndarray, cells: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        untrained().background(mask, cells, 0)


# Training


@pytest.mark.parametrize("stop", [4, 8])
def test_interrupted_and_resumed_is_the_same(
    tiles: Tiles, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    real, calls = module._generator_step, []

    def killed(*args: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_generator_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_generator(TINY, tmp_path / "parts", tiles)
    monkeypatch.setattr(module, "_generator_step", real)
    torch.manual_seed(99)
    parts = train_generator(TINY, tmp_path / "parts", tiles)
    expected, found = state_of(whole / "checkpoint.pt"), state_of(parts)
    assert expected.keys() == found.keys() and len(expected["history"]) == 8
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert log_of(whole) == log_of(tmp_path / "parts")
    assert [line["step"] for line in log_of(tmp_path / "parts")] == [2, 4, 6, 8]


def test_more_steps_continue_a_finished_training(tiles: Tiles, whole: Path, tmp_path: Path) -> None:
    long = state_of(whole / "checkpoint.pt")
    train_generator(replace(TINY, steps=6), tmp_path / "two", tiles)
    continued = state_of(train_generator(TINY, tmp_path / "two", tiles))
    for name, value in long.items():
        np.testing.assert_array_equal(continued[name], value, err_msg=name)


def test_what_a_training_leaves(whole: Path) -> None:
    assert sorted(p.name for p in whole.iterdir()) == [
        "checkpoint.json", "checkpoint.pt", "log.jsonl", "samples",
    ]  # fmt: skip
    record = json.loads((whole / "checkpoint.json").read_text())
    assert record["step"] == 9 and record["finished"] and record["tiles"] == 2
    assert GeneratorConfig.from_dict(record["config"]) == TINY
    assert set(log_of(whole)[0]) == {"step", "critic", "penalty", "wasserstein", "generator"}
    line = log_of(whole)[-1]
    assert line["critic"] == pytest.approx(10 * line["penalty"] - line["wasserstein"], abs=1e-4)
    grids = sorted((whole / "samples").iterdir())
    assert [p.name for p in grids] == ["step-000003.png", "step-000006.png", "step-000009.png"]
    assert imagecodecs.png_decode(grids[0].read_bytes()).shape == (4 * 18, 4 * 18)
    generator = load_generator(whole / "checkpoint.pt")
    assert generator.config == TINY and generator.look == TINY.look
    mask = np.zeros((20, 20), np.float32)
    np.testing.assert_array_equal(
        generator.background(mask, mask, 0), load_generator(whole).background(mask, mask, 0)
    )


def test_without_an_average_the_last_weights_are_used(tiles: Tiles, tmp_path: Path) -> None:
    record = state_of(train_generator(replace(TINY, average=0.0, steps=2), tmp_path, tiles))
    for name in (n for n in record if n.startswith("generator.")):
        np.testing.assert_array_equal(record[name], record[name.replace("generator.", "average.")])


@pytest.mark.parametrize(
    "change", [{"look": "soft"}, {"precision": "bfloat16"}, {"fit": "resize"}, {"history": 0}]
)
def test_every_mode_trains(tiles: Tiles, tmp_path: Path, change: dict[str, object]) -> None:
    config = replace(TINY, steps=2, **change)  # type: ignore[arg-type]
    checkpoint = train_generator(config, tmp_path, tiles)
    assert load_generator(checkpoint).config == config


def test_it_learns_the_grain_of_real_tiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    calm = tile_folder(tmp_path / "calm", [rng.normal(0.4, 0.02, (32, 32)) for _ in range(2)])
    config = replace(
        TINY, discs=(0.0, 0.0), generator_rate=3e-3, critic_rate=1e-2, average=0.8, batch=4,
        save_every=1000, sample_every=1000,
    )  # fmt: skip
    mask = np.zeros((64, 64), np.float32)

    def spread(steps: int) -> float:
        path = train_generator(replace(config, steps=steps), tmp_path / str(steps), calm)
        return float(np.mean([load_generator(path).background(mask, mask, s).std() for s in range(4)]))

    assert abs(spread(60) - 0.02) < 0.5 * abs(spread(1) - 0.02)


def test_cells_come_from_a_placement(tiles: Tiles, tmp_path: Path) -> None:
    class Centre:
        def sample(self, shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return np.array([[7.0, 4.0]]), np.array([2.0])

    job = module._Job(TINY, RealCrops(tiles, 16, "crop"), Centre())
    mask, _ = job.cells(2, np.random.default_rng(0))
    assert mask.shape == (2, 1, 16, 16) and mask[0, 0, 4, 7] == 1 and mask[0].sum() == 13


def test_a_placement_learnt_from_annotations_trains(tiles: Tiles, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = [rng.uniform(0, 30, (40, 2)) for _ in range(3)]
    placement = Placement.fit(points, [(32, 32)] * 3, radii=rng.uniform(1.5, 2.5, 50))
    source: DiscSource = placement
    drawn = [source.sample((16, 16), rng) for _ in range(50)]
    assert np.mean([len(radii) for _, radii in drawn]) == pytest.approx(10, rel=0.3)
    config = replace(TINY, steps=2)
    train_generator(replace(config, steps=1), tmp_path, tiles, discs=placement)
    train_generator(config, tmp_path, tiles, discs=Placement.from_dict(placement.to_dict()))
    with pytest.raises(UsageError, match="other data"):
        train_generator(config, tmp_path, tiles)


# What goes wrong


def test_a_loss_that_is_no_number_stops_the_training(tiles: Tiles, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="critic's loss is"):
        train_generator(replace(TINY, critic_rate=1e30), tmp_path, tiles)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_other_settings_or_data_are_not_continued(tiles: Tiles, tmp_path: Path) -> None:
    train_generator(replace(TINY, steps=1), tmp_path, tiles)
    with pytest.raises(UsageError, match="other settings"):
        train_generator(replace(TINY, penalty=5.0), tmp_path, tiles)
    with pytest.raises(UsageError, match="other data"):
        train_generator(TINY, tmp_path, tiles.take(np.array([0])))


def test_a_damaged_checkpoint_is_one_sentence(tiles: Tiles, tmp_path: Path) -> None:
    checkpoint = train_generator(replace(TINY, steps=1), tmp_path, tiles)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load_generator(checkpoint)
    with pytest.raises(DataError, match="not a readable checkpoint"):
        train_generator(TINY, tmp_path, tiles)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint"):
        load_generator(tmp_path)


def test_a_checkpoint_of_something_else(tiles: Tiles, tmp_path: Path) -> None:
    torch.save({"kind": "finetune", "average": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="of finetune, not of a generator"):
        load_generator(tmp_path / "checkpoint.pt")
    torch.save({"kind": "generator", "average": {}, "config": TINY.to_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="does not hold a generator"):
        load_generator(tmp_path / "checkpoint.pt")


def test_a_device_that_is_not_there(tiles: Tiles, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device is 'abacus'"):
        train_generator(TINY, tmp_path, tiles, device="abacus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sise": 128}, "unknown setting 'sise'"),
        ({"size": 100}, "multiple of 16"),
        ({"steps": 0}, "positive"),
        ({"batch": -1}, "positive"),
        ({"look": "hard"}, "study, soft"),
        ({"fit": "stretch"}, "crop, resize"),
        ({"precision": "float16"}, "float32, bfloat16"),
        ({"radius_px": [8.0, 1.0]}, "range"),
        ({"average": 1.0}, "below 1"),
        ({"history": -1}, "0 or more"),
        ({"widths": [16]}, "two levels"),
        ({"steps": "many"}, "wrong type"),
        ({"discs": 3}, "wrong type"),
    ],
)
def test_wrong_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GeneratorConfig.from_dict(change)


def test_settings_files(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    with pytest.raises(NotFoundError, match="no settings file"):
        read_generator_config(path)
    path.write_text("[generator]\nsteps = 7\n")
    assert read_generator_config(path, seed=3, size=None) == replace(GeneratorConfig(), steps=7, seed=3)
    path.write_text("steps = 7\n")
    with pytest.raises(UsageError, match="one table"):
        read_generator_config(path)
    path.write_text("[generator\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_generator_config(path)
