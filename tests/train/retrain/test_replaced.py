"""The work folder of a retraining that is replaced by another: the old one is whole until then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from brainmap.errors import UsageError
from brainmap.files import read_json, write_json
from brainmap.train.retrain import retrain as module


@dataclass(frozen=True)
class Asked:
    """What `retrain` needs of a request around its work."""

    work: Path
    seed: int
    overwrite: bool = False
    accept_worse: bool = False

    @property
    def work_folder(self) -> Path:
        return self.work

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"clicks": "a"}

    def parameters(self) -> dict[str, Any]:
        return {"seed": self.seed}


def test_another_retraining_takes_the_place_of_one_when_it_is_done(
    tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(request: Asked) -> None:
        made.append(request.work.name)
        write_json(request.work / "network" / "checkpoint.json", request.seed)
        write_json(request.work / "outcome.json", {"switch": False, "seed": request.seed})

    monkeypatch.setattr(module, "_make", make)
    work = tmp_path / "work"
    module._retrain(Asked(work, 1))  # type: ignore[arg-type]
    write_json(work / "old_only.json", 1)
    before = damage.snapshot(work)
    with pytest.raises(UsageError, match="seed was 1, is now 2"):
        module._retrain(Asked(work, 2))  # type: ignore[arg-type]

    def look(name: str) -> None:
        assert damage.is_whole(work, before), name

    failed = damage.at_every_file(lambda: module._retrain(Asked(work, 2, overwrite=True)), look)  # type: ignore[arg-type]
    assert len(failed) >= 6
    assert read_json(work / "outcome.json")["seed"] == 2
    assert read_json(work / "run.json")["status"] == "complete"
    assert not (work / "old_only.json").exists()
    assert damage.hidden(work) == []
    # The same again changes nothing.
    count = len(made)
    module._retrain(Asked(work, 2, overwrite=True))  # type: ignore[arg-type]
    assert len(made) == count
