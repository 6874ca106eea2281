"""Solutions that others have labelled, through `annotate --labelled` to pairs."""

import numpy as np
import pytest

from caspo_jax.preferences import TooLongWarning
from tests.experiments.conftest import GOLDENS, read

MODEL = GOLDENS / "llama31_untied_fp32"
PRM800K = {
    "id": "r",
    "question": {"problem": "2+2?", "ground_truth_answer": "4"},
    "label": {
        "steps": [
            {"completions": [{"text": "ok", "rating": 1}], "chosen_completion": 0},
            {
                "completions": [
                    {"text": "So 4.\n\n# Answer\n\n4", "rating": 1},
                    {"text": "So 5.", "rating": -1},
                    {"text": "Hm.", "rating": 0},
                ],
                "chosen_completion": None,
            },
        ]
    },
}
PROCESSBENCH = {"id": "gsm8k-0", "problem": "1+1?", "steps": ["a", "b", "c"], "label": 1}
SHEPHERD = {"id": "s", "input": "How? Step 1: 1 + 1 = 2 ки", "label": "How? Step 1: 1 + 1 = 2 +"}


def test_records_of_all_three_become_annotated_traces_and_pairs(program, write, tmp_path):
    given = write("in.jsonl", [PRM800K, PROCESSBENCH, SHEPHERD])
    flags = {"model": MODEL, "labelled": given, "output": tmp_path / "annotated.jsonl", "dtype": "float32"}
    code, _, err = program("annotate", batch_size=4, neutral="wrong", **flags)
    assert code == 0, err
    traces = {t["id"]: t for t in read(tmp_path / "annotated.jsonl")}
    assert list(traces) == ["r/0.0", "r/1.0", "r/1.1", "r/1.2", "gsm8k-0", "s"]
    verdicts = {name: [step["verdict"] for step in t["steps"]] for name, t in traces.items()}
    assert verdicts["r/1.1"] == verdicts["r/1.2"] == ["correct", "wrong"]
    assert verdicts["gsm8k-0"] == ["correct", "wrong", "unknown"]
    right = traces["r/1.0"]
    assert [step["text"] for step in right["steps"]] == ["ok", "So 4.\n\n# Answer\n\n4"]
    assert (right["answer"], right["correct"], right["finish_reason"]) == ("4", True, "eos")
    rated_so_far = [traces[name] for name in ("r/0.0", "r/1.1")]
    assert [(t["answer"], t["correct"]) for t in rated_so_far] == [(None, None)] * 2
    for name, trace in traces.items():
        assert len(trace["entropy"]) == len(trace["token_ids"]), name
        for step in trace["steps"]:
            assert trace["text"][step["start"] : step["end"]] == step["text"]
            assert 0 < step["confidence"] <= 1
            assert step["confidence"] == pytest.approx(np.exp(-step["entropy"]), rel=1e-5)
    # The log-probs are those that `score` gives the same ids.
    code, _, err = program(
        "score",
        model=MODEL,
        input=tmp_path / "annotated.jsonl",
        output=tmp_path / "s.jsonl",
        dtype="float32",
    )
    assert code == 0, err
    for score in read(tmp_path / "s.jsonl"):
        np.testing.assert_allclose(score["logprob"], traces[score["id"]]["logprob"], atol=1e-4)
    made = {"model": MODEL, "input": tmp_path / "annotated.jsonl", "output": tmp_path / "p.jsonl"}
    code, _, err = program("pairs", **made, dtype="float32", **{"pairs.include_aligned": "true"})
    assert code == 0, err
    pairs = read(tmp_path / "p.jsonl")
    assert {(p["prefix"], p["chosen"], p["rejected"]) for p in pairs if p["kind"] == "wrong"} >= {
        ("ok\n\n", "So 4.\n\n# Answer\n\n4", "So 5.")
    }
    # The same command does nothing; another meaning of 0 is another output.
    assert program("annotate", batch_size=4, neutral="wrong", **flags)[0] == 0
    code, _, err = program("annotate", batch_size=4, **flags)
    assert (code, "neutral" in err) == (1, True)


def test_a_solution_beyond_the_context_is_left_out(program, write, tmp_path):
    long = PROCESSBENCH | {"id": "long", "problem": "long " * 600}
    given, output = write("in.jsonl", [long, PROCESSBENCH]), tmp_path / "annotated.jsonl"
    with pytest.warns(
        TooLongWarning,
        match=r"in.jsonl: left out 1 of 2 solutions; the first: solution 'long': \d+ tokens exceed",
    ):
        code, _, err = program("annotate", model=MODEL, labelled=given, output=output, dtype="float32")
    assert code == 0, err
    assert [trace["id"] for trace in read(output)] == ["gsm8k-0"]


@pytest.mark.parametrize(
    "records, flags, word",
    [
        ([PROCESSBENCH, PROCESSBENCH], {}, "in.jsonl:2: id 'gsm8k-0' was used before"),
        ([PROCESSBENCH | {"label": 7}], {}, "in.jsonl:1"),
        ([{"id": "x"}], {}, "in.jsonl:1"),
        ([], {}, "no solution"),
        (
            [PROCESSBENCH | {"problem": "long " * 600}],
            {},
            "none of its 1 solutions can be used; the first: solution 'gsm8k-0': ",
        ),
        ([PROCESSBENCH], {"verifier": "equations"}, "--verifier"),
        ([PROCESSBENCH], {"input": "in.jsonl"}, "one of --input and --labelled"),
    ],
)
def test_bad_solutions_are_one_line(program, write, tmp_path, records, flags, word):
    given = write("in.jsonl", records)
    code, _, err = program("annotate", model=MODEL, labelled=given, output=tmp_path / "a.jsonl", **flags)
    assert (code, err.count("\n")) == (1, 1)
    assert word in err
    assert not (tmp_path / "a.jsonl").exists()
