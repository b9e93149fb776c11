"""One command at a time on a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from brainmap import lock
from brainmap.errors import DataError, UsageError
from brainmap.lock import LOCK_FILE, Holder, held, held_beside

HOLD = """
import sys, time
from pathlib import Path
from brainmap.lock import held
with held(Path(sys.argv[1]), "nothing"):
    print("held", flush=True)
    time.sleep(60)
"""


def write(path: Path, holder: Holder) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere() -> Holder:
    return replace(Holder.here(), host="node7", machine="another")


def test_the_second_is_refused_with_who_is_at_work(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        held(run, "x"),
        pytest.raises(UsageError, match=rf"in use by brainmap.*process {os.getpid()} on .*, since 20"),
        held(run, "x"),
    ):
        pass
    assert not run.exists(), "a folder in which nothing was made goes"


def test_both_kinds_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()
    with held(tmp_path / "run", "x"), held_beside(tmp_path / "out.zarr"):
        assert (tmp_path / "run" / LOCK_FILE).is_file()
        with pytest.raises(UsageError, match=r"out\.zarr is in use"), held_beside(tmp_path / "out.zarr"):
            pass
        with held_beside(tmp_path / "other.zarr"):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "run"]


def test_a_killed_holder_gives_way_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"process {process.pid} on"), held(run, "x"):
            pass
        process.kill()
    assert (run / LOCK_FILE).is_file()
    with held(run, "x"):
        pass
    assert not (run / LOCK_FILE).exists()


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path: Path) -> None:
    here = Holder.here()
    write(tmp_path / LOCK_FILE, replace(here, born=here.born - 100, token="before"))
    with held(tmp_path, "x"):
        pass


@pytest.mark.parametrize(("age", "lives"), [(1, True), (lock.DEAD_S - 20, True), (lock.DEAD_S + 20, False)])
def test_other_hosts_are_judged_by_their_last_sign_of_life(tmp_path: Path, age: float, lives: bool) -> None:
    write(tmp_path / LOCK_FILE, elsewhere())
    aged(tmp_path / LOCK_FILE, age)
    if lives:
        with pytest.raises(UsageError, match=r"on node7, since .* 3 minutes after"), held(tmp_path, "x"):
            pass
    else:
        with held(tmp_path, "x"):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 3}', b"\xff\xfe"])
def test_a_damaged_lock_is_waited_for_like_one_of_another_host(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with pytest.raises(UsageError, match="remove that file"), held(tmp_path, "x"):
        pass
    aged(tmp_path / LOCK_FILE, lock.DEAD_S + 20)
    with held(tmp_path, "x"):
        pass


def test_of_many_only_one_takes_over(tmp_path: Path) -> None:
    """Twelve threads find the same dead lock: one of them gets it at a time, and all of them in turn."""
    write(tmp_path / LOCK_FILE, replace(elsewhere(), token="dead"))
    aged(tmp_path / LOCK_FILE, 1000)
    inside, most, lost = 0, 0, []
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(400):
            try:
                with held(tmp_path, "x"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.002)
                    with guard:
                        inside -= 1
                return
            except UsageError:
                time.sleep(0.005)
        lost.append(1)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, lost) == (1, [])
    assert not list(tmp_path.iterdir())


def test_it_is_seen_to_live_and_stops_when_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    other = elsewhere()
    with pytest.raises(DataError, match="taken over"), held(tmp_path, "x"):
        aged(tmp_path / LOCK_FILE, 1000)
        time.sleep(0.5)
        assert time.time() - (tmp_path / LOCK_FILE).stat().st_mtime < 10
        write(tmp_path / "theirs", other)
        os.replace(tmp_path / "theirs", tmp_path / LOCK_FILE)
        time.sleep(60)
    assert Holder.read(tmp_path / LOCK_FILE) == other, "it is the other's now"


def test_one_lost_while_it_ends_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt of the heart comes after the work is done: it must not reach whoever called."""
    read = Holder.read
    asked = threading.Event()

    def slow(path: Path) -> Holder | None:
        if threading.current_thread().name != "brainmap-lock":
            return read(path)
        asked.set()
        time.sleep(0.3)
        return None

    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(Holder, "read", slow)
    with pytest.raises(DataError, match="taken over"), held(tmp_path, "x"):
        asked.wait(60)
    time.sleep(0.2)


def test_one_lost_where_nothing_interrupts_says_so_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup."""
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "_interrupt", lambda: None)
    with pytest.raises(DataError, match="taken over"), held(tmp_path, "x"):
        write(tmp_path / "theirs", elsewhere())
        os.replace(tmp_path / "theirs", tmp_path / LOCK_FILE)
        time.sleep(1)


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with held(tmp_path, "x"), pytest.raises(UsageError, match="in use"), held(tmp_path, "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_killed_commands_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".tmp-01234567-run.json").touch()
    (tmp_path / ".old-01234567-registration").mkdir()
    (tmp_path / ".old-01234567-registration" / "precious").touch()
    with held(tmp_path, "x"):
        pass
    # It was moved out of the way, and nothing came in its place.
    assert [path.name for path in tmp_path.iterdir()] == ["registration"]
    assert (tmp_path / "registration" / "precious").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_kept_is_said(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="finished blocks are kept"), held(tmp_path, "finished blocks are kept"):
        raise error


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write to"), held(tmp_path / "file", "x"):
        pass
