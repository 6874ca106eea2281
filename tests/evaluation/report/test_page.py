"""The file: one, self-contained, deterministic, and deaf to whatever its data says."""

import base64
import errno
import functools
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from caspo_jax.errors import UserError
from caspo_jax.evaluation.report import pair_view, tree_view, write_report
from caspo_jax.evaluation.report.choice import leading
from caspo_jax.evaluation.report.encode import script_json
from tests.evaluation.report.records import HOSTILE, ODD, pair, tokenizer, tree, write_lines
from tests.evaluation.report.runs import evaluate_run, faithfulness_run, large_run, small_run


class Page(HTMLParser):
    """What a browser would find: elements with attributes, and the contents of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.text: list[str] = []  # of everything that is no script
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "script":
            self.scripts.append((self.elements[-1][1], ""))
        self._open = tag == "script"

    def handle_endtag(self, tag):
        self._open = self._open and tag != "script"

    def handle_data(self, data):
        if self._open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text.append(data)

    def data(self, name: str):
        return next(json.loads(text) for attrs, text in self.scripts if attrs.get("id") == name)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = small_run(tmp_path_factory.mktemp("runs") / "run")
    return folder, write_report([folder], folder.parent / "report.html")


@pytest.fixture(scope="module")
def page(report):
    return Page(report[1].read_text(encoding="utf-8"))


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_json_for_a_script_holds_no_markup_and_loses_nothing(value):
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == json.loads(json.dumps(value).encode().decode("utf-8"))


def test_json_for_a_script_replaces_lone_surrogates_and_refuses_nan():
    assert json.loads(script_json("a\ud800b")) == "a\ufffdb"
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_half_a_character_in_a_summary_or_title_is_shown_and_no_crash(tmp_path):
    """JSON spells it, and so do paths whose names are not UTF-8, which manifests hold."""
    half = '{"policies": [{"name": "half \\ud800", "step_accuracy": 0.5}]}'
    (tmp_path / "summary.json").write_text(half, encoding="utf-8")
    text = write_report([tmp_path], tmp_path / "r.html", title="title \udcff").read_text(encoding="utf-8")
    assert "half \ufffd" in text
    assert "title \ufffd" in text


def test_the_only_script_is_the_pages_own_and_the_policy_names_its_hash(page):
    executable = [(a, t) for a, t in page.scripts if a.get("type") != "application/json"]
    assert len(executable) == 1
    digest = base64.b64encode(hashlib.sha256(executable[0][1].encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_no_resource_comes_from_elsewhere(page, report):
    text = report[1].read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "action", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    code = "".join(t for a, t in page.scripts if a.get("type") != "application/json")
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL).group(1)
    for part in (code, style):
        assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", part)


def test_every_field_of_hostile_records_arrives_unchanged(page):
    data = page.data("data-traces")
    at = data["index"]["id"].index("q2/0")
    assert data["questions"][data["index"]["question"][at]] == [
        "q2",
        HOSTILE,
        ODD.replace("\ud800", "\ufffd"),
    ]
    record = page.data(f"chunk-{data['index']['chunk'][at]}")[data["index"]["place"][at]]
    assert record["answer"] == HOSTILE
    assert HOSTILE in record["text"]
    assert page.data("data-pairs")["pairs"][1]["sides"][0]["text"].startswith(HOSTILE)


def test_token_spans_cut_the_text_where_the_tokenizer_does(page, report):
    from caspo_jax.models import load_tokenizer, token_bytes
    from caspo_jax.records import trace_from_record
    from caspo_jax.store import load_records

    tok = load_tokenizer(report[0] / "policy")
    vocabulary = token_bytes(tok, len(tok))
    data = page.data("data-traces")
    traces = load_records(report[0] / "samples/base/annotated.jsonl", trace_from_record)
    for trace in traces:
        at = data["index"]["id"].index(trace.id)
        record = page.data(f"chunk-{data['index']['chunk'][at]}")[data["index"]["place"][at]]
        assert record["text"] == trace.text
        wide = record["text"].encode("utf-16-le")
        place, pending = 0, []
        for token, length in zip(trace.token_ids, record["lengths"], strict=True):
            if length >= 0:
                assert b"".join(pending).decode("utf-8", "replace") == wide[: 2 * place].decode("utf-16-le")
                place += length
            pending.append(vocabulary[token])
        assert place == len(wide) // 2
        for step, shown in zip(trace.steps, record["steps"], strict=True):
            assert wide[2 * shown[0] : 2 * shown[1]].decode("utf-16-le") == step.text
            assert shown[2:4] == [step.token_start, step.token_end]


def test_flags_and_gaps_of_the_index(page):
    index = page.data("data-traces")["index"]
    rows = {i: k for k, i in enumerate(index["id"]) if index["set"][k] == 0}
    assert [index["flawed"][rows[n]] for n in ("q1/0", "q1/1", "q1/2")] == [0, 0, 1]
    assert [index["gap"][rows[n]] for n in ("q1/0", "q1/1")] == [-0.1, 0.8]
    assert index["gap"][rows["q1/2"]] == pytest.approx((0.8 + 0.5 - 1) / 2)


def test_the_tree_knows_its_answers_and_weights(page):
    tree = page.data("data-trees")["trees"][0]
    finished = tree["nodes"][2]
    assert (finished["answer"], finished["weight"], finished["right"]) == ("42", 1.0, True)
    assert tree["answers"] == [["42", 1.0]]
    assert tree["gold"] == "42"


def test_pairs_carry_their_scores_before_and_after(page):
    scored = page.data("data-pairs")["pairs"][0]
    n = len(scored["sides"][0]["ids"])
    assert [s["policy"] for s in scored["sides"][0]["scores"]] == ["base", "round_1"]
    assert scored["sides"][0]["scores"][1]["total"] == pytest.approx(-0.3 * n)
    assert (
        scored["shared"] == 7
        or scored["sides"][0]["ids"][scored["shared"]] != scored["sides"][1]["ids"][scored["shared"]]
    )


def test_the_same_files_give_the_same_bytes(report, tmp_path):
    seen = []
    again = write_report([report[0]], tmp_path / "again.html", progress=lambda *at: seen.append(at))
    assert seen == [(done, 7) for done in range(1, 8)]  # the run is read, and six parts of the page are made
    assert again.read_bytes() == report[1].read_bytes()


def test_two_runs_stand_side_by_side(report, tmp_path):
    other = small_run(tmp_path / "other")
    page = Page(write_report([report[0], other], tmp_path / "both.html").read_text(encoding="utf-8"))
    assert [s["run"] for s in page.data("data-traces")["sets"]] == ["run", "run", "other", "other"]


def test_without_a_tokenizer_traces_are_shown_by_steps(tmp_path):
    folder = small_run(tmp_path / "run")
    for file in (folder / "policy").iterdir():
        file.unlink()
    page = Page(write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8"))
    data = page.data("data-traces")
    assert not any(s["tokens"] for s in data["sets"])
    assert "lengths" not in page.data("chunk-0")[0]


def test_of_too_many_traces_whole_questions_are_shown(tmp_path):
    folder = large_run(tmp_path / "run", 400)
    page = Page(write_report([folder], tmp_path / "r.html", most_traces=80).read_text(encoding="utf-8"))
    data = page.data("data-traces")
    assert data["sets"][0]["total"] == 400
    shown = [i.partition("/")[0] for i in data["index"]["id"]]
    assert len(shown) == 80
    assert {shown.count(q) for q in shown} == {8}
    assert {"q0", "q49"} <= set(shown)  # from the beginning to the end


def test_of_long_trees_and_pairs_fewer_are_shown(tmp_path, monkeypatch):
    """200 trees of eight branches of 10,000 tokens would be 180 MB of page, 1,000 pairs after thoughts 60 MB."""
    tok = tokenizer()
    trees = [tree(tok, f"q{i}") for i in range(6)]
    write_lines(tmp_path / "long" / "trees.jsonl", trees)
    write_lines(
        tmp_path / "long" / "pairs.jsonl", [pair(tok, f"p{i}") | {"prefix": "x" * 13_000} for i in range(6)]
    )
    each = sum(map(len, trees[0]["token_ids"]))
    assert each < 1000
    for view, most in ((tree_view, 3 * each), (pair_view, 3200)):
        monkeypatch.setattr(view, "leading", functools.partial(leading, most_tokens=most))
    page = Page(write_report([tmp_path / "long"], tmp_path / "r.html").read_text(encoding="utf-8"))
    for kind in ("trees", "pairs"):
        data = page.data(f"data-{kind}")
        assert len(data[kind]) == 3
        assert (data["sets"][0]["shown"], data["sets"][0]["total"]) == (3, 6)
    assert leading([5, 5, 5], 9, 9) == leading([50], 9, 9) == 1
    assert leading([5, 5, 5], 2, 100) == 2
    assert leading([5, 5, 5], 9, 15) == 3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"parent": [-1, 5, 1, 1]}, "parent"),
        ({"status": ["pruned"]}, "lengths"),
        ({"entropy": [[0.1], [], [], []]}, "entropy"),
        ({"status": ["nonsense"] * 4}, "status"),
        ({"token_ids": [["x"], [], [], []]}, "token_ids"),
        ({"votes": [1]}, "votes"),
        ({"schema": {"name": "tree", "version": 99}}, "newer"),
    ],
)
def test_a_malformed_tree_is_named_by_file_and_line(tmp_path, change, word):
    from caspo_jax.errors import UserError

    good = tree(tokenizer())
    write_lines(tmp_path / "trees.jsonl", [good, good | change])
    with pytest.raises(UserError, match=f"trees.jsonl:2.*{word}"):
        write_report([tmp_path], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("steps", {"trace_id": None, "decisiveness": 3}, "`decisiveness` must be numbers by name"),
        ("steps", {"confidence": {"entropy": "high"}}, "`entropy` must be a number"),
        ("decisiveness", {"id": "q0/0", "scores": [0.5]}, "`scores` must be lists by scorer"),
        ("decisiveness", {"id": "q0/0", "scores": {"lexicon": [1.5]}}, "must lie in"),
        ("decisiveness", {"scores": {"lexicon": [0.5]}}, "malformed record"),
    ],
)
def test_malformed_scores_are_named_by_file_and_line(tmp_path, name, change, word):
    from caspo_jax.errors import UserError

    run = faithfulness_run(tmp_path / "run")
    if name == "steps":
        change = json.loads((run / "steps.jsonl").read_text().splitlines()[0]) | change
    (run / "steps.jsonl").unlink()
    write_lines(run / f"{name}.jsonl", [change])
    with pytest.raises(UserError, match=rf"{name}\.jsonl:1: .*{word}"):
        write_report([run], tmp_path / "report.html")


def test_scores_of_another_kind_are_no_scores(tmp_path):
    run = faithfulness_run(tmp_path / "run")
    write_lines(run / "steps.jsonl", [{"schema": "x"}])
    write_report([run], tmp_path / "report.html")


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    from caspo_jax.errors import UserError

    with pytest.raises(UserError, match="no summary"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"runs='.*' is one folder: give a list of them"):
        write_report(str(tmp_path), tmp_path / "x.html")
    with pytest.raises(UserError, match="no such folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")


@pytest.mark.parametrize("closed", ["run", "run/inner"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, closed):
    (small_run(tmp_path / "run") / "inner").mkdir()
    listed = os.scandir

    def scandir(folder):  # root, who may run this, reads every folder
        if Path(folder) == tmp_path / closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=rf"cannot read .*{closed}: Permission denied"):
        write_report([tmp_path / "run"], tmp_path / "r.html")


def test_hostile_names_are_data_in_every_kind_of_run(tmp_path):
    """Benchmarks, strategies, scorers, estimators, file and folder names, whatever they say."""
    folder = tmp_path / "<img src=x onerror=pwned()>"
    for number, make in enumerate((evaluate_run, faithfulness_run, small_run)):
        run = make(folder / f"{number}<b onmouseover=pwned()>")
        (run / "x<script>pwned()<").mkdir()
        shutil.copy(next(run.rglob("*.jsonl")), run / "x<script>pwned()<" / "traces.jsonl")
        (run / "a&quot;<i>.png").write_bytes(b"\x89PNG")
        page = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"))
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert len([a for a, _ in page.scripts if a.get("type") != "application/json"]) == 1
        images = [a for tag, a in page.elements if tag == "img"]
        assert [a["alt"] for a in images] == ["a&quot;<i>"]
        assert "pwned" in "".join(t for a, t in page.scripts if a.get("type") == "application/json")
        shown = "".join(page.text)
        assert f"{number}<b onmouseover=pwned()>" in shown  # the run's name, as text
        assert HOSTILE.split()[0].split("<script>")[0] in shown


@pytest.mark.parametrize(
    "field, value", [("counts", [1]), ("seconds", "long"), ("versions", [1]), ("versions", {"jax": [1]})]
)
def test_a_manifest_that_is_none_of_ours_is_named(tmp_path, field, value):
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "x.manifest.json").write_text(json.dumps({field: value}))
    with pytest.raises(UserError, match=f"x.manifest.json: `{field}`"):
        write_report([tmp_path], tmp_path / "report.html")
