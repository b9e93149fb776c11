from __future__ import annotations

import io
import logging
import re
import time

import pytest

from brainmap import progress
from brainmap.progress import LogDisplay, Task, TerminalDisplay, duration, shown, task, tracked


class _Seen:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def begun(self, work: Task) -> None:
        self.events.append(("begun", work.what))

    def ended(self, work: Task) -> None:
        self.events.append(("ended", f"{work.what} {work.done:g}"))


def test_a_display_hears_of_tasks_and_of_nothing_afterwards() -> None:
    seen = _Seen()
    with task("before"):
        pass
    with shown(seen), pytest.raises(ValueError, match="inside"), task("reading", 3, "files") as work:
        work.advance()
        work.advance()
        raise ValueError("inside")
    with task("after"):
        pass
    assert seen.events == [("begun", "reading"), ("ended", "reading 2")]


def test_tracked_items_count_themselves() -> None:
    seen = _Seen()
    with shown(seen):
        assert list(tracked([5, 6, 7], "summing")) == [5, 6, 7]
    assert seen.events[-1] == ("ended", "summing 3")


def test_time_left_is_told_when_it_is_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    work = Task("training", 900, "steps")
    clock[0] += 1
    work.update(100)
    assert work.seconds_left is None, "after a second"
    clock[0] += 9
    assert work.seconds_left == pytest.approx(80)
    assert work.words() == "11 % (100 of 900 steps), about 80 s left"
    work.update(101, "score 0.9")
    assert "score 0.9" in work.words()
    # What was done before this command is no pace of it.
    resumed = Task("training", 900, "steps", done=800)
    clock[0] += 10
    resumed.update(850)
    assert resumed.seconds_left == pytest.approx(10)
    assert Task("waiting").words() == "0 s so far"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (3599, "1 h"), (3600 * 2.5, "2 h 30 min")],
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "brainmap.progress")
    logging.getLogger("brainmap").propagate = True
    with shown(LogDisplay(every_s=0.02)), task("aligning", 4, "levels") as work:
        work.update(2)
        time.sleep(0.15)
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all(re.match(r"aligning: 50 % \(2 of 4 levels\), ", line) for line in lines)
    before = len(lines)
    time.sleep(0.1)
    assert len(caplog.records) == before


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with shown(TerminalDisplay()), task("detecting [brain]", 10) as outer, task("reading"):
        outer.update(5, "7 cells")
        time.sleep(0.6)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "detecting [brain]" in text and "50 %, 7 cells" in text and "reading" in text
