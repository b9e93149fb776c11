"""Folders of results replaced as a whole: at every file that fails, the old result of every command is there."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from brainmap.atlas.atlas import Atlas
from brainmap.cohort import results
from brainmap.cohort.results import compare
from brainmap.cohort.simulate import Simulation as Animals
from brainmap.cohort.simulate import simulate as simulate_animals
from brainmap.cohort.simulate import write_runs
from brainmap.convert.convert import convert
from brainmap.errors import UsageError
from brainmap.files import write_json
from brainmap.gt import aggregate as gt
from brainmap.gt.aggregate import aggregate
from brainmap.gt.simulate import Simulation as Crowd
from brainmap.gt.simulate import simulate as simulate_crowd
from brainmap.image.volume import Volume, write_volume
from brainmap.lock import held, held_beside
from brainmap.registration import register as registering
from brainmap.swap import finish_swap, put_in_place, staged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    for name in ("last.json", "table.csv", "maps/a.npy", "shared/ours.csv", "shared/theirs.txt", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"old {name}")
    return out


def make(new: Path) -> None:
    for name in ("last.json", "maps/b.npy", "shared/ours.csv"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(f"new {name}")


def test_files_are_replaced_and_others_stay(folder: Path, damage: Any) -> None:
    with staged(folder, "last.json", ["shared"]) as new:
        make(new)
    found = damage.snapshot(folder)
    assert {name for name, content in found.items() if content.startswith(b"new")} == {
        "last.json", "maps/b.npy", "shared/ours.csv"
    }  # fmt: skip
    assert {name for name, content in found.items() if content.startswith(b"old")} == {
        "table.csv", "shared/theirs.txt", "notes.txt",
    }  # fmt: skip
    assert damage.hidden(folder) == []


@pytest.mark.parametrize("killed_after", range(6))
def test_a_swap_that_was_cut_short_goes_on(folder: Path, damage: Any, killed_after: int) -> None:
    """Also where what belonged to the old result has been removed, and part of the new one has its place already."""
    import os

    made = folder / ".replacement"
    made.mkdir()
    make(made)
    replace, left = os.replace, [killed_after + 2]

    def stop(source: str | Path, target: str | Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(source, target)

    own = ("last.json", "table.csv", "maps", "shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", stop)
        try:
            put_in_place(folder, made, "last.json", own=own)
        except KeyboardInterrupt:
            if not (folder / ".swap").is_dir():
                put_in_place(folder, made, "last.json", own=own)
    finish_swap(folder)
    assert sorted(damage.snapshot(folder)) == ["last.json", "maps/b.npy", "notes.txt", "shared/ours.csv"]
    assert damage.hidden(folder) == []


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    crowd = simulate_crowd(
        Crowd(n_images=2, size=120, n_cells=12, n_sites=6, n_workers=8, spammers=1, strays=1), 3
    )
    made = crowd[0] if isinstance(crowd, tuple) else getattr(crowd, "clicks", crowd)
    path = tmp_path / "clicks.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "worker_id", "x", "y", "height", "width"])
        for i, w, (x, y) in zip(made.image, made.worker, made.xy, strict=True):
            writer.writerow([made.image_ids[i], made.worker_ids[w], x, y, made.height[i], made.width[i]])
    return path


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long, and writes nothing, is done once for each input."""
    known: dict[int, Any] = {}
    think, weigh = gt.aggregate_clicks, results.compare_groups

    def remember(clicks: Any, *more: Any, **options: Any) -> Any:
        if len(clicks) not in known:
            known[len(clicks)] = think(clicks, *more, **options)
        return known[len(clicks)]

    monkeypatch.setattr(gt, "aggregate_clicks", remember)
    monkeypatch.setattr(
        results, "compare_groups", lambda *a: known.get(-1) or known.setdefault(-1, weigh(*a))
    )
    monkeypatch.setattr("brainmap.gt.report.write_report", lambda path, *_, **__: write_json(path, "report"))
    monkeypatch.setattr(
        "brainmap.cohort.report.page.write_report", lambda _, path: write_json(path, "report")
    )


@pytest.mark.usefixtures("once")
def test_gt_aggregate(clicks: Path, tmp_path: Path, damage: Any) -> None:
    out = tmp_path / "gt"
    aggregate(clicks, out)
    (out / "notes.txt").write_text("mine")
    before = damage.snapshot(out)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(clicks.read_text().splitlines(keepends=True)[:-9]))

    def look(name: str) -> None:
        assert damage.is_whole(out, before), name

    assert len(damage.at_every_file(lambda: aggregate(fewer, out), look)) > 7
    assert set(damage.snapshot(out)) == set(before)
    assert damage.snapshot(out)["points.csv"] != before["points.csv"]
    assert damage.hidden(out) == []
    with held(out, "x"), pytest.raises(UsageError, match="is in use by"):
        aggregate(clicks, out)


@pytest.mark.usefixtures("once")
def test_compare(tmp_path: Path, damage: Any) -> None:
    animals = Animals(
        regions=12, fewest=50, planted=2, fold=10, dispersion=0.02, dispersion_freedom=0, shared_sd=0
    )
    groups = write_runs(simulate_animals(animals, 2), tmp_path / "study")
    out = tmp_path / "out"
    compare(groups, out)
    (out / "notes.txt").write_text("mine")
    before = damage.snapshot(out)

    def look(name: str) -> None:
        assert damage.is_whole(out, before), name

    assert len(damage.at_every_file(lambda: compare(groups, out, overwrite=True), look)) >= 8
    assert set(damage.snapshot(out)) == set(before)
    assert damage.hidden(out) == []


def test_register(tmp_path: Path, damage: Any, write_atlas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the alignment itself left out."""
    atlas = Atlas.open(write_atlas())
    volume = write_volume(
        tmp_path / "brain.zarr", np.ones((4, 8, 8), np.uint16), (9.0, 9.0, 9.0), orientation="asr"
    )

    class Quick:
        def __init__(self, *given: Any) -> None:
            self.folder, self.parameters = given[2], given[5]

        def write(self, prints: dict[str, str]) -> None:
            for name in ("annotation.ome.zarr", "hemispheres.ome.zarr"):
                write_volume(self.folder / name, np.ones((2, 2, 2), np.uint8), (9.0, 9.0, 9.0))
            grid = {"shape": [2, 2, 2]}
            write_json(
                self.folder / "registration.json", {"format": 1, "grid": grid, **prints, "n": self.parameters}
            )

    monkeypatch.setattr(registering, "RegistrationRun", Quick)
    monkeypatch.setattr(registering, "check_sections", lambda *_: None)
    monkeypatch.setattr(registering, "brain_size", lambda *_: 1.0)
    monkeypatch.setattr("brainmap.registration.registered.SampleGrid.from_json", lambda _: None)

    class Settled:
        warnings, letters = (), "asr"

    monkeypatch.setattr(registering, "settle_orientation", lambda *_: Settled())
    out = tmp_path / "registration"

    def register(seed: int, **more: Any) -> None:
        options = registering.RegistrationOptions(seed=seed)
        registering.register(volume, atlas, out, options=options, **more)

    register(1)
    before = damage.snapshot(out)
    with pytest.raises(UsageError, match="--overwrite"):
        register(2)

    def look(name: str) -> None:
        assert damage.is_whole(out, before), name

    assert len(damage.at_every_file(lambda: register(2, overwrite=True), look)) >= 3
    assert damage.snapshot(out) != before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    # A lost record, or a lost image, is made anew by --overwrite.
    for name in ("registration.json", "annotation.ome.zarr/zarr.json"):
        (out / name).unlink()
        with pytest.raises(ValueError, match=r"has lost .*--overwrite"):
            register(2)
        register(2, overwrite=True)
        register(2)


def test_convert(tmp_path: Path, damage: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 999, (9, 40, 50)).astype(np.uint16)
    source, other, dest = tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "brain.zarr"
    tifffile.imwrite(source, pixels)
    tifffile.imwrite(other, pixels // 2)
    convert(source, dest, (5, 2, 2))
    before = damage.snapshot(dest)

    def look(name: str) -> None:
        assert damage.is_whole(dest, before), name

    damage.at_every_file(lambda: convert(other, dest, (5, 2, 2), overwrite=True), look)
    np.testing.assert_array_equal(Volume.open(dest).read(slice(None), slice(None), slice(None)), pixels // 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif", "brain.zarr"]
    with held_beside(dest), pytest.raises(UsageError, match="is in use by"):
        convert(source, dest, (5, 2, 2), overwrite=True)
