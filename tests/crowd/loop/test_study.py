"""The study on data whose answer is built in; selections; intervals."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmap.crowd.loop import study as module
from brainmap.crowd.loop.study import designs_of, run_study, select
from brainmap.crowd.loop.study_judge import Labelled, judge_selection
from brainmap.crowd.loop.study_record import Design, Study, StudyRequest
from brainmap.errors import DataError, UsageError
from brainmap.tiles.tiles import write_tiles

ANIMALS, SECTIONS, PER_SECTION, CANDIDATES = 20, 4, 3, 16


def labelled(animal_effect: float, seed: int = 0) -> Labelled:
    """Candidates that two traits tell apart; how, turns from animal to animal by `animal_effect`."""
    rng = np.random.default_rng(seed)
    tiles = ANIMALS * SECTIONS * PER_SECTION
    animal = np.repeat(np.arange(ANIMALS), SECTIONS * PER_SECTION)
    section = np.repeat(np.arange(ANIMALS * SECTIONS), PER_SECTION)
    tile = np.repeat(np.arange(tiles), CANDIDATES)
    correct = rng.random(len(tile)) < 0.4
    sign = np.where(correct, 1.0, -1.0)
    turn = animal_effect * rng.normal(0, 1, (ANIMALS, 4))
    trait = rng.normal(0, 1, (len(tile), 6))
    trait[:, 0] += 1.2 * sign
    trait[:, 1:5] += turn[animal[tile]] + 0.4 * sign[:, None]
    place = np.column_stack([section * 10, np.zeros(tiles), np.arange(tiles) % PER_SECTION * 100])
    n_true = np.bincount(tile[correct], minlength=tiles)
    return Labelled(
        animal, section, place.astype(float), rng.normal(0, 1, (tiles, 3)), rng.random(tiles), n_true, tile, trait,
        np.full(len(tile), 0.5), correct,
    )  # fmt: skip


def request_for(**changes: object) -> StudyRequest:
    base = StudyRequest(
        Path("t"), Path("g"), Path("o"), budget=8, repeats=12, strategies=("even", "random", "active")
    )
    return replace(base, **changes)


def test_many_animals_win_where_animals_differ() -> None:
    study = module._compare(request_for(), labelled(2.5), 0.5)
    claim = study.claims[0]
    assert claim.verdict == "confirmed" and claim.mean > 0.02 and claim.low > 0
    assert np.nanmean(study.everything[0]) > np.nanmean(study.nothing[0])


def test_no_claim_is_confirmed_where_animals_are_alike() -> None:
    claim = module._compare(request_for(repeats=4, draws=1), labelled(0.0), 0.5).claims[0]
    assert claim.verdict == "not decided"
    assert claim.low < 0 < claim.high


def test_features_without_meaning_do_not_make_active_choice_better() -> None:
    request = request_for(strategies=("random", "active"), repeats=3, draws=1)
    claims = {c.text: c for c in module._compare(request, labelled(1.0), 0.5).claims}
    active = claims["random or even choice does as well as active"]
    assert active.verdict in ("confirmed", "not decided")
    assert claims["random or even choice does as well as uncertain"].verdict == "not tested"


def test_one_animal_is_held_out_by_sections_and_its_claim_is_not_tested() -> None:
    data = replace(labelled(1.0), animal=np.zeros(ANIMALS * SECTIONS * PER_SECTION, np.int64))
    study = module._compare(request_for(budget=3, repeats=3), data, 0.5)
    assert study.claims[0].verdict == "not tested"
    assert {d.slices for d in study.designs} == {"many"}


# Animals and slices, and how many sections they mean for 8 tiles.
DESIGNS = [(1, "few", 3), (1, "many", 4), (4, "few", 4), (4, "many", 8)]


@pytest.mark.parametrize("strategy", ["even", "random", "active", "uncertain"])
@pytest.mark.parametrize(
    ("animals", "slices", "sections"), [(1, "few", 3), (1, "many", 4), (4, "few", 4), (4, "many", 8)]
)
def test_every_design_spends_the_budget_on_its_animals_and_slices(
    strategy: str, animals: int, slices: str, sections: int
) -> None:
    data = labelled(1.0)
    drawn = np.array([5, 2, 7, 0])[:animals]
    chosen = select(data, data.animal, drawn, Design(animals, slices, strategy), 8, 1)
    assert len(np.unique(chosen)) == 8
    assert set(data.animal[chosen]) == set(drawn)
    assert np.ptp(np.bincount(data.animal[chosen])[drawn]) == 0
    assert len(np.unique(data.section[chosen])) == sections


def test_designs_are_those_that_any_animals_can_fill() -> None:
    data = labelled(1.0)
    levels = {d.animals for d in designs_of(data, data.animal, 6, 8, ["even"])}
    assert levels == {1, 2, 4, 6}
    assert {d.animals for d in designs_of(data, data.animal, 6, 20, ["even"])} == {2, 4, 6}
    with pytest.raises(
        DataError, match="a budget of 80 tiles is too large for 6 animals with 12 to 12 tiles"
    ):
        designs_of(data, data.animal, 6, 80, ["even"])


def test_a_few_labels_move_the_detector_little_and_many_teach_it() -> None:
    data = labelled(0.0)
    held_out = {0: np.arange(200, 240)}
    f1 = [
        judge_selection(data, chosen, held_out, 0.5)[0].f1 for chosen in (None, np.arange(1), np.arange(100))
    ]
    assert f1[0] < f1[1] < f1[2]
    assert f1[2] > 0.85
    nothing = replace(data, tile=np.full(len(data.tile), 220))
    assert judge_selection(nothing, np.arange(5), held_out, 0.5) == judge_selection(
        nothing, None, held_out, 0.5
    )


@pytest.mark.parametrize("right", [True, False])
def test_candidates_that_are_all_alike_teach_no_nonsense(right: bool) -> None:
    data = labelled(0.0)
    alike = replace(data, correct=np.full(len(data.correct), right), n_true=np.ones_like(data.n_true))
    judged = judge_selection(alike, np.arange(20), {0: np.arange(50, 60)}, 0.5)[0]
    assert np.isfinite([judged.f1, judged.auprc]).all()


def test_f1_and_auprc_at_known_answers() -> None:
    data = replace(
        labelled(0.0), tile=np.zeros(4, np.int64), score=np.array([0.9, 0.8, 0.7, 0.1]), trait=np.zeros((4, 1)),
        correct=np.array([True, False, True, True]), n_true=np.array([4]),
    )  # fmt: skip
    judged = judge_selection(data, None, {7: np.array([0])}, 0.5)[7]
    assert judged.f1 == pytest.approx(2 * 2 / (3 + 4))
    assert judged.auprc == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)


def study_of(values: np.ndarray) -> Study:
    return Study(Path(), values.shape[1], 100, 8, 3, [], *(np.zeros((1, 1, 1)),) * 4)


def test_the_interval_is_wide_where_animals_differ_and_where_draws_do() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 12), (12, 1)):
        values = 0.1 + np.broadcast_to(rng.normal(0, 0.2, shape), (12, 12)) + rng.normal(0, 0.001, (12, 12))
        mean, low, high = study_of(values).interval(values)
        assert mean == pytest.approx(values.mean())
        half = 1.796 * values.mean(axis=int(shape[0] > 1)).std(ddof=1) / np.sqrt(12)
        assert (high - low) / 2 == pytest.approx(half, rel=0.02)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = rng.normal(0, 1, (1, 12)) + rng.normal(0, 1, (8, 1)) + rng.normal(0, 1, (8, 12))
        values[rng.random((8, 12)) < 0.6] = np.nan
        _, low, high = study_of(values).interval(values)
        covered += low <= 0 <= high
    assert covered >= 0.88 * 200


def test_everybody_judges_before_anybody_does_again() -> None:
    turns = module._turns(7, 2, request_for(repeats=7))
    assert np.bincount(np.concatenate(turns), minlength=7).tolist() == [2] * 7
    assert all(len(set(turn)) == 2 for turn in turns)


def test_from_tiles_to_a_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, rows = [], ["image_id,x,y"]
    for i in range(16):
        image = rng.normal(0.3, 0.03, (64, 64))
        for x, y in rng.uniform(6, 58, (8, 2)):
            yy, xx = np.mgrid[:64, :64]
            image += 0.35 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * 2.0**2))
            rows.append(f"t{i:02d},{x:.2f},{y:.2f}")
        images.append(np.clip(image, 0, 1).astype(np.float32))
    columns = {
        "image_id": [f"t{i:02d}" for i in range(16)], "brain": np.repeat([f"m{i}" for i in range(4)], 4),
        "z": np.tile([0, 0, 8, 8], 4), "y0": [0] * 16, "x0": np.tile([0, 64, 0, 64], 4),
        "voxel_um": [(5.0, 2.0, 2.0)] * 16,
    }  # fmt: skip
    write_tiles(tmp_path / "tiles", columns, images)
    (tmp_path / "truth.csv").write_text("\n".join(rows) + "\n")
    request = StudyRequest(
        tmp_path / "tiles", tmp_path / "truth.csv", tmp_path / "out", budget=2, repeats=3, draws=1
    )
    study = run_study(request)
    assert np.nanmean(study.nothing[0]) > 0.5, "the shipped detector finds such cells"
    with (tmp_path / "out" / "study.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 3 * len(study.designs) * study.held_out
    report = (tmp_path / "out" / "report.html").read_text()
    assert all(claim.text in report for claim in study.claims)
    again = run_study(replace(request, out=tmp_path / "again"))
    np.testing.assert_array_equal(study.f1, again.f1)


@pytest.mark.parametrize(
    "changes", [{"repeats": 2}, {"draws": 0}, {"held_out": 1.0}, {"budget": 0}, {"strategies": ("best",)}]
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        request_for(**changes)
