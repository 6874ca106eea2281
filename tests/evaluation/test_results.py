"""Tables, matched votes, paired tests and comparisons of stored answers."""

import csv
import io
import json

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation import answer_records, results, two_runs
from caspo_jax.evaluation.formats import csv_text, markdown, plain, write_table
from caspo_jax.evaluation.strategies.base import Answer, Settings
from caspo_jax.evaluation.strategies.pool import Sample
from caspo_jax.store import write_jsonl


def same(a, b):
    return a == b


def answers(strategy, size, right, tokens, benchmark="x", seconds=1.0, gold="1"):
    made = [
        Answer(strategy, size, f"q{i}", "1", bool(r), int(t), int(t) + 1, seconds=seconds)
        for i, (r, t) in enumerate(zip(right, tokens))
    ]
    golds = {a.question: answer_records.gold_hash(gold) for a in made}
    return [answer_records.answer_record(a, benchmark, golds) for a in made]


def run(seed, shift=0.0):
    rng = np.random.default_rng(seed)
    pool, records = [], []
    for i in range(60):
        hard = rng.random()
        for j in range(8):
            right = bool(rng.random() > hard - shift)
            pool.append(Sample(f"q{i}", j, "1" if right else str(rng.integers(2, 5)), right, int(rng.integers(20, 60)), -rng.random(), 0.9, 1.0, 1.0, f"{i}{j}"))  # fmt: skip
    samples = [answer_records.sample_record(s, "x") for s in pool]
    for size in (2, 8):
        records += answers(
            "self_consistency", str(size), rng.random(60) < 0.5, rng.integers(size * 20, size * 60, 60)
        )
    records += answers("cat", "4", rng.random(60) < 0.6 + shift, rng.integers(100, 200, 60))
    records += answers("cat", "64", rng.random(60) < 0.7 + shift, rng.integers(3000, 4000, 60))
    records += answers("greedy", "1", rng.random(60) < 0.5, rng.integers(20, 60, 60), seconds=0.5)
    return records, samples


def test_votes_are_matched_to_cats_tokens():
    records, samples = run(0)
    found = results.matched_votes(records, samples, Settings(), same)
    assert {(r["strategy"], r["size"]) for r in found} == {
        ("self_consistency", "= cat 4")
    }  # 64 costs more than the pool
    cost = np.mean([r["tokens"] for r in records if (r["strategy"], r["size"]) == ("cat", "4")])
    spent = np.mean([r["tokens"] for r in found])
    assert cost - 5 < spent <= cost
    assert all(r["seconds"] is None for r in found)
    by_question = {}
    for s in samples:
        by_question.setdefault(s["question"], []).append(s)
    for record in found:
        lengths = np.cumsum([s["tokens"] for s in by_question[record["question"]]])
        assert record["tokens"] in lengths
    again = results.matched_votes(records, samples, Settings(), same)
    assert again == found


def test_table_means_and_repeats():
    records = answers("sample", "1", [1, 0, 1], [10, 20, 30])
    second = [r | {"index": 1, "id": r["id"] + "x", "correct": False, "seconds": 0.25} for r in records]
    (row,) = results.table([*records, *second], draws=50)
    assert (row["questions"], row["answers"]) == (3, 2)
    assert row["accuracy"] == pytest.approx(1 / 3)
    assert row["tokens"] == 20
    assert row["calls"] == 21
    assert row["seconds"] == 0.25


def test_one_group_has_no_time_without_compilation():
    """The minimum over groups leaves compilation out only where a later group could find what the first one compiled."""
    first, second = (
        answers("cat", "2", [1, 0], [5, 5], seconds=9.0),
        answers("cat", "2", [1], [5], seconds=1.5),
    )
    alone, both = results.table(first, draws=10), results.table([*first, *second], draws=10)
    assert (alone[0]["seconds"], both[0]["seconds"]) == (None, 1.5)
    assert results.table([r | {"seconds": None} for r in first], draws=10)[0]["seconds"] is None


def test_paired_table_takes_the_match_or_the_nearest_cost():
    records, samples = run(1)
    records += results.matched_votes(records, samples, Settings(), same)
    rows = {(r["size"], r["baseline"]): r for r in results.paired_table(records, draws=100)}
    assert rows["4", "self_consistency"]["baseline_size"] == "= cat 4"
    assert rows["64", "self_consistency"]["baseline_size"] == "8"
    assert rows["4", "greedy"]["baseline_size"] == "1"
    row = rows["64", "greedy"]
    cat = np.array([r["correct"] for r in records if (r["strategy"], r["size"]) == ("cat", "64")], float)
    greedy = np.array([r["correct"] for r in records if r["strategy"] == "greedy"], float)
    assert row["difference"] == pytest.approx(cat.mean() - greedy.mean())
    assert (row["verdict"] == "above") == (row["low"] > 0)


@pytest.mark.parametrize(("count", "verdict"), [(2, "equal"), (5, "equal"), (6, "above")])
def test_few_questions_that_go_one_way_prove_nothing(count, verdict):
    better, worse = (
        answers("cat", "2", [1] * count, [5] * count),
        answers("greedy", "1", [0] * count, [5] * count),
    )
    row = results.paired_row(better, worse, draws=100)
    assert (row["low"], row["p_value"], row["verdict"]) == (1.0, 2 / 2**count, verdict)
    assert results.paired_row(worse, better, draws=100)["verdict"] == verdict.replace("above", "below")


def test_votes_matched_to_cats_tokens_know_their_questions():
    records, samples = run(0)
    found = results.matched_votes(records, samples, Settings(), same)
    assert {r["gold_hash"] for r in found} == {answer_records.gold_hash("1")}
    assert len({answer_records.gold_hash(gold) for gold in ("1", "", "\ud800")}) == 3


def test_questions_of_one_id_and_other_golds_are_not_compared():
    a, b = answers("greedy", "1", [1, 0], [5, 5]), answers("greedy", "1", [1, 1], [5, 5])
    assert two_runs.compare(a, b, draws=20).rows[0]["difference"] == 0.5
    other = answers("greedy", "1", [1, 1], [5, 5], gold="2")
    with pytest.raises(UserError, match="'q0' has another gold answer"):
        two_runs.compare(a, other)
    older = [{k: v for k, v in r.items() if k != "gold_hash"} for r in other]  # of a file without them
    assert two_runs.compare(a, older, draws=20).rows[0]["difference"] == 0.5


def test_compare_is_paired_by_question():
    a, _ = run(2)
    b, _ = run(2)
    for row in two_runs.compare(a, b, draws=50).rows:
        assert row["difference"] == row["low"] == row["high"] == 0
        assert row["p_value"] == 1.0
        assert row["verdict"] == "equal"
    better = [r | {"correct": True} if r["strategy"] == "greedy" else r for r in b][:-20]
    rows = {(r["strategy"], r["size"]): r for r in two_runs.compare(a, better, draws=200).rows}
    assert rows["greedy", "1"]["verdict"] == "above"
    assert rows["greedy", "1"]["questions"] == 40
    assert rows["greedy", "1"]["a"] == pytest.approx(
        np.mean([r["correct"] for r in a if r["strategy"] == "greedy"][:40])
    )
    with pytest.raises(UserError, match="share no benchmark"):
        two_runs.compare(a, answers("other", "1", [1], [1]))
    with pytest.raises(UserError, match="no question in common"):
        results.paired_row(a[:1], [a[1]])


def test_questions_that_one_run_lacks_are_counted():
    a = answers("greedy", "1", [1, 0, 1], [5] * 3) + answers("cat", "4", [1, 0, 1], [5] * 3)
    b = answers("greedy", "1", [0, 0, 1, 1], [5] * 4)[1:] + answers("cat", "4", [0, 0, 1, 1], [5] * 4)[1:]
    for row in two_runs.compare(a, b, draws=20).rows:
        assert (row["questions"], row["only_a"], row["only_b"], row["a"]) == (2, 1, 1, 0.5)
    (line,) = two_runs.compare(a, b, draws=20).left_out
    assert line.startswith("x: 1 of the 3 questions of A and 1 of the 3 of B")
    assert two_runs.compare(a, a, draws=20).left_out == []
    assert (
        len(two_runs.compare(a, b[:3] + b[4:], draws=20).left_out) == 2
    )  # one strategy lost another question than the other
    other = answers("greedy", "1", [1, 1], [5] * 2, benchmark="y")
    assert [line[:27] for line in two_runs.compare(a + other, a, draws=20).left_out] == [
        "y: all 2 questions of A are"
    ]
    assert [line[:27] for line in two_runs.compare(a, a + other, draws=20).left_out] == [
        "y: all 2 questions of B are"
    ]


def test_strategies_and_sizes_that_one_run_lacks_are_named():
    """A strategy that is missing as a whole by its name, one that lacks sizes by these, for each run in its own sentence."""
    both = answers("greedy", "1", [1, 0], [5] * 2) + answers("cat", "4", [1, 0], [5] * 2)
    beam = answers("beam", "2x2", [1, 0], [5] * 2) + answers("beam", "4x4", [1, 0], [5] * 2)
    a = both + answers("cat", "8", [1, 0], [5] * 2) + beam
    b = both + answers("mcts", "4", [1, 0], [5] * 2)
    found = two_runs.compare(a, b, draws=20)
    assert [(row["strategy"], row["size"]) for row in found.rows] == [("greedy", "1"), ("cat", "4")]
    assert found.left_out == [
        "x: cat 8, beam of A are left out, the other run does not have them",
        "x: mcts of B is left out, the other run does not have it",
    ]
    assert two_runs.compare(both, both, draws=20).left_out == []


def test_a_strategy_without_a_common_question_does_not_end_the_comparison_of_others():
    a = answers("greedy", "1", [1, 0], [5] * 2) + answers("cat", "4", [1], [5])
    b = answers("greedy", "1", [1, 0], [5] * 2) + answers("cat", "4", [1, 0], [5] * 2)[1:]
    assert [row["strategy"] for row in two_runs.compare(a, b, draws=20).rows] == ["greedy"]
    (line,) = two_runs.compare(a, b, draws=20).left_out
    assert line.startswith("x (cat 4): 1 of the 1 questions of A and 1 of the 1 of B")
    with pytest.raises(UserError, match="no question in common"):
        two_runs.compare(a[2:], b[2:])


def test_a_question_with_more_answers_weighs_no_more():
    records = [*answers("sample", "1", [1], [5]) * 3, *answers("sample", "1", [1, 0], [5] * 2)[1:]]
    (row,) = results.table(records, draws=20)
    assert (row["accuracy"], row["questions"]) == (0.5, 2)


def test_costs_of_a_pair_are_those_of_the_questions_that_it_compares():
    a, b = answers("cat", "4", [1, 0, 1], [10, 20, 900]), answers("greedy", "1", [1, 1], [4, 6])
    row = results.paired_row(a, b, draws=20)
    assert (row["questions"], row["tokens"], row["baseline_tokens"]) == (2, 15, 5)


def test_bad_files_are_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"strategy": "x"}])
    with pytest.raises(UserError, match=r"a.jsonl:1: an answer lacks benchmark"):
        answer_records.read_answers(tmp_path / "a.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="no answers"):
        answer_records.read_answers(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="cannot read"):
        answer_records.read_answers(tmp_path)


def test_three_formats_one_set_of_figures(tmp_path):
    rows = [{"name": "a", "x": 0.12345, "n": 12000}, {"name": "b", "x": float("nan"), "n": 7}]
    write_table(tmp_path / "t", rows, {"name": "name", "x": "x", "n": "n"}, note=np.float32(1.0))
    text = (tmp_path / "t.md").read_text()
    assert "| a    | 0.123 | 12,000 |" in text
    assert "|     - |" in text
    assert text == markdown(rows, {"name": "name", "x": "x", "n": "n"}) + "\n"
    read = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert read == [{"name": "a", "x": "0.12345", "n": "12000"}, {"name": "b", "x": "", "n": "7"}]
    assert csv_text(rows) == (tmp_path / "t.csv").read_text()
    write_table(tmp_path / "t.steps", rows[:1], {"name": "name"})  # a dot in the name is no suffix
    assert (tmp_path / "t.steps.json").exists()
    stored = json.loads((tmp_path / "t.json").read_text())
    assert stored == {"note": 1.0, "rows": plain(rows)}
    assert stored["rows"][1]["x"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("correct", None), ("correct", "yes"), ("tokens", None), ("calls", "5"), ("benchmark", [])],
)
def test_an_answer_of_another_type_is_named_with_its_line(tmp_path, field, value):
    record = answers("greedy", "1", [1], [5])[0]
    write_jsonl(tmp_path / "a.jsonl", [record, record | {field: value}])
    with pytest.raises(UserError, match=rf"a.jsonl:2: `{field}` of an answer must be"):
        answer_records.read_answers(tmp_path / "a.jsonl")


def test_of_one_question_nothing_is_above(tmp_path):
    records = answers("cat", "4", [1], [100]) + answers("greedy", "1", [0], [90])
    (row,) = results.paired_table(records)
    assert (row["difference"], row["verdict"]) == (1.0, "equal")
    rows = results.table(records)
    write_table(tmp_path / "table", rows, results.COLUMNS, paired=[row])
    found = json.loads((tmp_path / "table.json").read_text())
    ends = [entry[end] for entry in (*found["rows"], *found["paired"]) for end in ("low", "high")]
    assert ends == [None] * 6
    assert "nan" not in (tmp_path / "table.md").read_text() + (tmp_path / "table.csv").read_text()
    ((row,), _) = two_runs.compare(answers("cat", "4", [0], [100]), answers("cat", "4", [1], [100]))
    assert (row["difference"], row["verdict"]) == (1.0, "equal")


def test_what_cannot_be_told_apart_is_not_called_equal(tmp_path):
    rows = [{"strategy": "equal", "verdict": verdict} for verdict in ("equal", "above")]
    write_table(tmp_path / "t", rows, {"strategy": "strategy", "verdict": "B is"})
    shown = (tmp_path / "t.md").read_text().splitlines()[2:]
    assert [line.split("|")[1:3] for line in shown] == [
        [" equal    ", " not told apart "],
        [" equal    ", " above          "],
    ]
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == rows


def test_a_zero_has_no_sign():
    table = markdown([{"x": -0.0002, "low": -0.0, "high": -0.0006}], {"x": "x", ("low", "high"): "95 %"})
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[1:3]] == ["0.000", "[0.000, -0.001]"]


def test_a_name_ends_neither_its_cell_nor_its_line():
    table = markdown([{"name": "a|b\nc\u2028d", "x": 1}], {"name": "name", "x": "x"})
    assert table.splitlines()[2] == "| a\\|b c d | 1 |".replace("1 |", "  1 |")
