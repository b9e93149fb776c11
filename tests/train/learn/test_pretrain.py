"""Training in miniature: it learns, it resumes exactly, it exports what it learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from brainmap.errors import DataError, UsageError  # noqa: E402
from brainmap.infer.detector import Detector, load_backend  # noqa: E402
from brainmap.infer.peaks import PLAIN_FACE, FaceWeights  # noqa: E402
from brainmap.train.judge.calibrate import (  # noqa: E402
    Judged,
    balanced_face,
    best_threshold,
    calibration_knots,
    face_weights,
    judge,
)
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.export import check_export, export_detector, receptive_radius  # noqa: E402
from brainmap.train.learn.loop import load_network  # noqa: E402
from brainmap.train.learn.pool import PoolConfig  # noqa: E402
from brainmap.train.learn.pretrain import PretrainConfig, load_model, pretrain  # noqa: E402
from brainmap.train.learn.samples import GridSettings, net_volume, save_volumes  # noqa: E402
from brainmap.train.recipe_settings import Recipe  # noqa: E402
from brainmap.train.tissue.tissue import TissueConfig, simulate, variant  # noqa: E402

EASY = TissueConfig(
    shape=(6, 128, 128), voxel_um=(4.0, 2.0, 2.0), density_per_mm3=40_000, brightness=5.0, vessels=0,
    ring_share=0.0, texture_fine=0.02, photons=2000,
)  # fmt: skip
TINY = PretrainConfig(
    network=CenterNetConfig(slices=3, widths=(8, 8)),
    pool=PoolConfig(volumes=2),
    crop=64,
    batch=2,
    steps=12,
    warm_up=2,
    average=0.8,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of two easy volumes in place of the simulated one."""
    folder = tmp_path_factory.mktemp("pool")
    save_volumes(
        folder / "volumes-0000.npz", [net_volume(simulate(EASY, s), GridSettings()) for s in range(2)]
    )
    return folder


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_model(path)[0].state_dict().items()}


def test_interrupted_and_resumed_gives_the_same_weights(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(pretrain(TINY, tmp_path / "whole", pool))
    from brainmap.train.learn import pretrain as module

    real, calls = module.centernet_loss, []

    def killed(*args: object) -> object:
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "SAVE_EVERY", 6)
    monkeypatch.setattr(module, "centernet_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "parts", pool)
    monkeypatch.setattr(module, "centernet_loss", real)
    resumed = weights(pretrain(TINY, tmp_path / "parts", pool))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_it_learns_to_find_cells(pool: Path, tmp_path: Path) -> None:
    config = replace(
        TINY, network=CenterNetConfig(slices=3, widths=(12, 16)), steps=120, batch=4, learning_rate=5e-3
    )
    model, _ = load_model(pretrain(config, tmp_path, pool))
    held_out = net_volume(simulate(EASY, 9), GridSettings())
    judged = judge(model, held_out, config.grid)
    _, f1 = best_threshold([judged])
    assert f1 > 0.8


def test_another_configuration_is_not_continued(pool: Path, tmp_path: Path) -> None:
    pretrain(replace(TINY, steps=2), tmp_path, pool)
    with pytest.raises(UsageError, match="other settings"):
        pretrain(replace(TINY, steps=3), tmp_path, pool)


def test_a_damaged_checkpoint_is_one_sentence(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        pretrain(TINY, tmp_path, pool)


def test_a_loss_that_is_no_number_stops_the_training(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the loss is"):
        pretrain(replace(TINY, learning_rate=1e30, warm_up=0), tmp_path, pool)


def test_a_short_pool_is_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are needed"):
        pretrain(replace(TINY, pool=PoolConfig(volumes=5)), tmp_path, pool)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_exported_network_is_the_trained_one(stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CenterNet(CenterNetConfig(slices=3, stride=stride, widths=(8, 12, 16))).eval()
    detector = export_detector(
        model, GridSettings(), tmp_path / "d", "tiny", "1", 0.5, ((-4.0, 0.0), (4.0, 1.0)), {}, "card"
    )  # fmt: skip
    files = ["card.md", "detector.json", "model.onnx", "weights.pt"]
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == files
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "d" / "model.onnx").read_bytes()
    further, grid = load_network(tmp_path / "d")
    assert grid == GridSettings()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(further.state_dict()[name], value, rtol=0, atol=0)
    again = Detector.open(tmp_path / "d")
    assert again.spec == detector.spec
    assert again.spec.stride == stride
    # The batch is free, and so is the tile.
    image = np.random.default_rng(0).normal(0, 0.1, (3, 3, 160, 176)).astype(np.float32)
    logit, offset = load_backend(again, "openvino", tile=(160, 176), precision="f32").infer(image)
    with torch.no_grad():
        expected = model(torch.from_numpy(image))
    np.testing.assert_allclose(logit, expected[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(offset, expected[1].numpy(), atol=1e-3)


def test_a_detector_that_is_not_the_network_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CenterNet(CenterNetConfig(slices=3, widths=(8, 12))).eval()
    detector = export_detector(
        model, GridSettings(), tmp_path, "tiny", "1", 0.5, ((-4.0, 0.0), (4.0, 1.0)), {}, "card"
    )  # fmt: skip
    check_export(model, detector)
    with torch.no_grad():
        model.heat[0].bias += 0.01
    with pytest.raises(DataError, match="differs from the trained one"):
        check_export(model, detector)


def test_nothing_beyond_the_halo_changes_an_output() -> None:
    torch.manual_seed(0)
    model = CenterNet(CenterNetConfig(slices=3, widths=(8, 8, 8))).eval()
    radius = receptive_radius(model, 128)
    image = torch.randn(1, 3, 128, 128)
    other = image.clone()
    other[..., : 64 - radius - 1] = 7
    with torch.no_grad():
        assert model(image)[0][0, 0, 64, 64] == model(other)[0][0, 0, 64, 64]


def test_calibration_is_monotone_and_right() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000).astype(np.float32)
    correct = rng.random(len(logit)) < 1 / (1 + np.exp(-1.5 * logit))
    knots = np.array(calibration_knots([Judged(logit, correct, 10_000)]))
    assert (np.diff(knots[:, 0]) > 0).all()
    assert (np.diff(knots[:, 1]) >= 0).all()
    for at in (-1.0, 0.0, 1.0):
        assert np.interp(at, *knots.T) == pytest.approx(1 / (1 + np.exp(-1.5 * at)), abs=0.08)


def test_weights_of_the_outermost_slices_are_learnt() -> None:
    rng = np.random.default_rng(0)
    judged = []
    for _ in range(20):
        logit = rng.normal(0, 2, 2000).astype(np.float32)
        inside = np.where(np.arange(2000) < 1000, logit - rng.exponential(2.0, 2000), np.nan).astype(
            np.float32
        )
        chance = np.where(np.isnan(inside), 1.5 * logit, -0.6 + 0.9 * logit + 0.45 * np.nan_to_num(inside))
        correct = rng.random(2000) < 1 / (1 + np.exp(-chance))
        judged.append(Judged(logit, correct, 1000, inside, 0.5))
    weights = face_weights(judged)
    np.testing.assert_allclose(weights, (-0.4, 0.6, 0.3, 0.0), atol=0.05)
    # Now a logit means the same on a face and inside.
    mended = judged[0].weighed(weights)
    on_face = np.isfinite(judged[0].inside)
    np.testing.assert_array_equal(mended.logit[~on_face], judged[0].logit[~on_face])
    np.testing.assert_allclose(
        mended.logit[on_face],
        weights[0] + weights[1] * judged[0].logit[on_face] + weights[2] * judged[0].inside[on_face],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_faces_gain_as_many_cells_as_they_lose() -> None:
    rng = np.random.default_rng(0)
    logit, inside = rng.normal(0, 2, 8000).astype(np.float32), rng.normal(-3, 1, 8000).astype(np.float32)
    # Mostly wrong, and hard to tell: a threshold on the probability would take far too few.
    correct = rng.random(8000) < 0.3 / (1 + np.exp(-0.6 * logit))
    weights = balanced_face([Judged(logit, correct, 2000, inside, 0.5)], (0.0, 0.6, 0.2, 0.0), -0.5)
    assert weights[1:] == (0.6, 0.2, 0.0)
    taken = Judged(logit, correct, 2000, inside, 0.5).weighed(weights).logit >= -0.5
    assert taken.sum() == pytest.approx(correct.sum(), rel=0.01)
    # With the distance of slices the share of right ones grows; the weights follow it.
    judged = []
    for step in (0.3, 0.4, 0.5):
        right = rng.random(8000) < step / (1 + np.exp(-0.6 * logit))
        judged.append(Judged(logit, right, 2000, inside, step))
    weights = balanced_face(judged, (0.0, 0.6, 0.2, 0.0), -0.5)
    assert weights[3] > 1
    for one in judged:
        assert (one.weighed(weights).logit >= -0.5).sum() == pytest.approx(one.correct.sum(), rel=0.05)
    assert balanced_face(judged, PLAIN_FACE, -0.5) == PLAIN_FACE


def test_without_cells_on_the_faces_nothing_is_corrected() -> None:
    logit = np.linspace(-3, 3, 500).astype(np.float32)
    alone = Judged(logit, logit > 0, 250, np.full(500, np.nan, np.float32))
    assert face_weights([alone, Judged(logit, logit > 0, 250)]) == PLAIN_FACE
    assert alone.weighed((9.0, 9.0, 9.0, 9.0)).logit.tolist() == logit.tolist()


def test_slabs_hold_about_the_cells_of_the_whole() -> None:
    detector = Detector.open()
    model, grid = load_network(detector.folder)
    whole = net_volume(simulate(variant("dense", shape=(24, 256, 256)), 9), grid)
    lowest = detector.spec.logit_at(detector.spec.threshold)

    def count(stack: np.ndarray, face: FaceWeights) -> int:
        found = (
            judge(model, replace(whole, stack=stack), grid).weighed(face).lowered(detector.spec.prominence)
        )
        return int((found.logit >= lowest).sum())

    slabs = [whole.stack[i : i + 4] for i in range(0, 24, 4)]
    gain = {
        face: sum(count(slab, face) for slab in slabs) / count(whole.stack, face) - 1
        for face in (PLAIN_FACE, detector.spec.face)
    }
    # Twelve faces for two: every cell that is cut used to count on both sides.
    assert gain[PLAIN_FACE] > 0.15
    assert abs(gain[detector.spec.face]) < 0.1


def test_settings_are_read_and_checked(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("[pretrain]\nstep = 3\n")
    with pytest.raises(UsageError, match="unknown setting 'step'"):
        Recipe.read(tmp_path / "wrong.toml")
    for wrong in ({"stride": 3}, {"slices": 4}, {"widths": (8,)}):
        with pytest.raises(UsageError):
            CenterNetConfig(**wrong)
    with pytest.raises(UsageError, match="multiple"):
        replace(TINY, crop=63)


def test_the_shipped_recipe_is_valid_and_its_student_is_smaller(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "configs" / "default_detector.toml"
    recipe = Recipe.read(shipped)
    assert recipe.student is not None
    assert all(a <= b for a, b in zip(recipe.student.widths, recipe.pretrain.network.widths, strict=True))
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[student]\nwidths = [8, 16, 24]\nstep = 3\n")
    with pytest.raises(UsageError, match="unknown setting 'step'"):
        Recipe.read(wrong)
