"""What programs say: a bar for people, lines for log files, JSON for programs, nothing when asked."""

import io
import json
import sys

import pytest
from absl import flags

from experiments import terminal


@pytest.fixture
def given(monkeypatch):
    """given(**flags) sets the terminal flags for code that looks at them."""

    def set_(**values):
        parsed = flags.FlagValues()
        flags.DEFINE_bool("quiet", False, "", flag_values=parsed)
        flags.DEFINE_bool("log_json", False, "", flag_values=parsed)
        parsed(["program", *(f"--{k}={v}" for k, v in values.items())])
        monkeypatch.setattr(terminal, "FLAGS", parsed)

    return set_


class Screen(io.StringIO):
    def isatty(self):
        return True


def work(steps=3):
    with terminal.Progress(steps, "train", unit="update") as progress:
        for k in range(steps):
            progress.update(loss=1.0 / (k + 1), margin=None)
    terminal.say("a table")
    terminal.closing("done", {"updates": steps, "rate": 0.5})


def test_json_lines_alone_on_stdout(given, capsys):
    given(log_json=True)
    work()
    out = capsys.readouterr()
    records = [json.loads(line) for line in out.out.splitlines()]
    assert [r["event"] for r in records] == ["progress"] * 3 + ["summary"]
    assert [(r["done"], r["total"], r["loss"]) for r in records[:3]] == [
        (1, 3, 1.0),
        (2, 3, 0.5),
        (3, 3, 1 / 3),
    ]
    assert "margin" not in records[0]
    assert records[-1]["title"] == "done"
    assert records[-1]["updates"] == 3
    assert out.err == ""


def test_quiet_leaves_the_summary(given, capsys):
    given(quiet=True)
    work()
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.splitlines()[:2] == ["a table", "done"]


def test_a_log_file_gets_whole_lines_now_and_then(given, capsys, monkeypatch):
    given()
    monkeypatch.setattr(terminal, "PLAIN_EVERY", 0.0)
    work(3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "train: 1 of 3 updates, loss 1"
    assert "s left" in lines[1]
    assert "loss 0.5" in lines[1]
    assert "a second, loss" in lines[2]
    monkeypatch.setattr(terminal, "PLAIN_EVERY", 60.0)
    work(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("before", [0, 400])
def test_neither_compilation_nor_what_an_earlier_start_did_counts_as_pace(given, capsys, monkeypatch, before):
    given()
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.Progress(0, "train", unit="update") as progress:
        for seconds, done in ((0.0, 0), (11.0, 1), (5.0, 11), (5.0, 21)):
            now[0] += seconds
            progress.reach(before + done if done else 0, before + 41)
    assert capsys.readouterr().err.splitlines() == [
        f"train: {before + 1} of {before + 41} updates",
        f"train: {before + 21} of {before + 41} updates, 2 a second, about 10 s left",
    ]


def test_a_terminal_gets_a_bar_with_rate_and_numbers(given, monkeypatch):
    given()
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    work()
    shown = screen.getvalue().split("\r")[-1]
    assert "3/3" in shown
    assert "loss=0.333" in shown
    assert "updates/s" in shown


def test_a_bar_shows_what_is_new_although_nothing_more_is_done(given, monkeypatch):
    given()
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.Progress(3, "graph", unit="part") as progress:
        for done in (1, 2):
            progress.update(0, decoded=f"{done} of 9")
            assert f"decoded={done} of 9" in screen.getvalue().split("\r")[-1]


def test_numbers_that_json_lacks_become_null(given, capsys):
    given(log_json=True)
    terminal.emit("progress", loss=float("nan"), last={"x": [float("inf"), 1]})
    assert json.loads(capsys.readouterr().out) == {
        "event": "progress",
        "loss": None,
        "last": {"x": [None, 1]},
    }


def test_the_closing_table_reads_well(given, capsys):
    given()
    terminal.closing(
        "run in D",
        {
            "verified_rows": 12345,
            "rate": 0.123456,
            "big": 1234567.8,
            "low": -1234567.8,
            "kept": True,
            "last": {"loss": 1.5, "n": 2},
            "name": "x",
        },
    )
    assert capsys.readouterr().out.splitlines() == [
        "run in D",
        "  verified rows  12,345",
        "  rate           0.1235",
        "  big            1,234,568",
        "  low            -1,234,568",
        "  kept           True",
        "  last           loss  1.5",
        "                 n     2",
        "  name           x",
    ]
