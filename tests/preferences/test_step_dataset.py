"""The step dataset loads with `datasets`."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.preferences import step_dataset, step_rows, write_step_dataset
from caspo_jax.steps import StatedEquations, annotate_traces
from caspo_jax.types import Trace

VOCABULARY = [bytes([b]) for b in range(256)] + [b""]


def traces():
    found = []
    for i, text in enumerate(["1 + 1 = 2\n\n2 + 2 = 5\n\nhm é", "3 + 3 = 6"]):
        ids = (*text.encode(), 256)
        found.append(
            Trace(f"t{i}", "q", "5", None, (1, 2), ids, text, "eos", correct=True, entropy=(0.5,) * len(ids))
        )
    return annotate_traces(found, VOCABULARY, verifier=StatedEquations())


def test_written_and_loaded(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "steps"
    counts = write_step_dataset(traces(), folder)
    assert counts == {"traces": 2, "steps": 4, "correct": 2, "wrong": 1, "unknown": 1}
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert loaded.to_list() == step_rows(traces())
    assert loaded["flawed_correct"] == [True, True, True, False]
    assert loaded["step"][2] == "hm é"
    card = (folder / "README.md").read_text()
    assert "4 reasoning steps of 2 sampled traces" in card
    assert "| wrong | 1 | 0.6065 |" in card
    assert "{{" not in card
    assert len([p for p in folder.rglob("*") if p.is_file()]) == 2


def test_a_lone_surrogate_is_replaced_as_no_file_but_json_can_hold_one(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    odd = dataclasses.replace(traces()[1], question="an emoji cut in two: \ud83e", strategy="\udd16")
    write_step_dataset([odd], tmp_path)
    (file,) = (tmp_path / "data").iterdir()
    assert parquet.read_table(file)["question"].to_pylist() == ["an emoji cut in two: \ufffd"]
    assert "\ufffd" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_written_anew_is_loaded_anew(tmp_path):
    datasets = pytest.importorskip("datasets")
    for found in (traces(), traces()[:1]):
        for folder in (tmp_path / "steps", tmp_path / "elsewhere" / "steps"):
            write_step_dataset(found, folder)
            loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
            assert loaded.to_list() == step_rows(found)
            assert len(list((folder / "data").iterdir())) == 1


@pytest.mark.parametrize("limit", [{"_PART": 3}, pytest.param({"_PART_IDS": 1}, marks=pytest.mark.ci)])
def test_written_in_parts_of_an_iterator(tmp_path, monkeypatch, limit):
    """The traces of a whole run are never in memory together; what is loaded and what the card says is the same."""
    parquet = pytest.importorskip("pyarrow.parquet")
    found = [*traces(), *traces(), dataclasses.replace(traces()[0], steps=())]
    whole = write_step_dataset(found, tmp_path / "whole")
    for name, most in limit.items():
        monkeypatch.setattr(step_dataset, name, most)
    held = []

    def one_at_a_time():
        for trace in found:
            one = dataclasses.replace(trace)
            held.append(weakref.ref(one))
            yield one
            del one
            gc.collect()
            assert sum(ref() is not None for ref in held) <= 1

    assert write_step_dataset(one_at_a_time(), tmp_path / "parts") == whole
    (one,), (parts,) = (list((tmp_path / name / "data").iterdir()) for name in ("whole", "parts"))
    assert parquet.read_metadata(parts).num_row_groups == 3
    assert parquet.read_table(parts).to_pylist() == parquet.read_table(one).to_pylist() == step_rows(found)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("whole", "parts")]
    assert cards[0].replace(one.name, parts.name) == cards[1]


def test_a_long_thought_takes_room_by_its_length_not_by_its_square(tmp_path):
    """Each of 300 steps is written with all those before it: six million characters and ids of a text of 40,000."""
    pytest.importorskip("pyarrow.parquet")
    random = np.random.default_rng(0)
    text = "\n\n".join("".join(map(chr, random.integers(97, 123, 130))) for _ in range(300))
    ids = tuple(text.encode())
    found = annotate_traces([Trace("long", "q", None, None, (1, 2), ids, text, "eos")], VOCABULARY)
    assert write_step_dataset(found, tmp_path)["steps"] == 300
    (file,) = (tmp_path / "data").iterdir()
    assert file.stat().st_size < 40 * len(text)  # 212 by a dictionary


def test_a_row_is_a_step_after_what_stood_before_it():
    """Prefix and step are the trace up to the step's end, as text and as ids; a limit leaves the last step unfinished."""
    cut = [dataclasses.replace(trace, finish_reason="length", correct=None) for trace in traces()]
    for whole in (traces(), cut):
        rows = step_rows(whole)
        by_id = {trace.id: trace for trace in whole}
        for row in rows:
            trace = by_id[row["trace_id"]]
            step = trace.steps[row["step_index"]]
            assert row["prefix_ids"] + row["step_ids"] == list(trace.token_ids[: step.token_end])
            assert row["prefix"] + row["step"] == trace.text[: step.end]
            assert row["num_steps"] == len(trace.steps)
            assert row["verdict"] == step.verdict
        assert [row["finished"] for row in rows] == [True, True, whole is not cut, whole is not cut]
        assert {row["flawed_correct"] for row in rows} == ({None} if whole is cut else {True, False})


def test_a_readme_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(UserError, match="not of a step dataset"):
        write_step_dataset(traces(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    write_step_dataset(traces(), tmp_path, overwrite=True)
    write_step_dataset(traces(), tmp_path)  # its own card is no obstacle
    with pytest.raises(UserError, match="is a file"):
        write_step_dataset(traces(), tmp_path / "README.md")


def test_nothing_to_write(tmp_path):
    with pytest.raises(UserError, match="no step to write"):
        write_step_dataset([], tmp_path)
