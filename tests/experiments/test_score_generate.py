"""`score` and `generate` against transformers' golden values, through the command line."""

import numpy as np
import pytest

from tests.experiments.conftest import GOLDENS, read

CHECKPOINTS = ("qwen3_tied_fp32", "llama31_untied_fp32", "qwen2_untied_bf16_sharded")


def golden(name):
    return np.load(GOLDENS / name / "expected.npz")


def prompts(expected):
    ids, mask = expected["right_input_ids"], expected["right_attention_mask"].astype(bool)
    return [row[keep].tolist() for row, keep in zip(ids, mask)]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_score_matches_transformers(program, write, tmp_path, name):
    expected = golden(name)
    rows = prompts(expected)
    given = write(
        "in.jsonl", [{"id": str(i), "prompt_ids": r[:2], "token_ids": r[2:]} for i, r in enumerate(rows)]
    )
    out = tmp_path / "out.jsonl"
    code, _, err = program(
        "score", model=GOLDENS / name, input=given, output=out, dtype="float32", batch_size=2
    )
    assert code == 0, err
    scores = read(out)
    assert [s["id"] for s in scores] == ["0", "1", "2"]
    for i, (row, score) in enumerate(zip(rows, scores)):
        assert len(score["logprob"]) == len(score["entropy"]) == len(row) - 2
        span = slice(1, len(row) - 1)
        np.testing.assert_allclose(score["logprob"], expected["right_token_logps"][i, span], atol=1e-4)
        np.testing.assert_allclose(score["entropy"], expected["right_entropy_nats"][i, span], atol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_matches_transformers(program, write, tmp_path, name):
    expected = golden(name)
    given = write("in.jsonl", [{"id": f"q{i}", "prompt_ids": r} for i, r in enumerate(prompts(expected))])
    out = tmp_path / "out.jsonl"
    code, _, err = program(
        "generate",
        "--ignore_eos",
        model=GOLDENS / name,
        input=given,
        output=out,
        strategy="greedy",
        dtype="float32",
        max_new_tokens=32,
    )
    assert code == 0, err
    traces = read(out)
    assert [t["id"] for t in traces] == ["q0", "q1", "q2"]
    for i, trace in enumerate(traces):
        assert trace["token_ids"] == expected["greedy_new_tokens"][i].tolist()
        np.testing.assert_allclose(trace["logprob"], expected["greedy_token_logps"][i], atol=1e-4)
        np.testing.assert_allclose(trace["entropy"], expected["greedy_entropy_nats"][i], atol=1e-4)
        assert trace["finish_reason"] == "length"


def test_a_second_run_resumes_and_other_settings_are_refused(program, write, tmp_path):
    given = write("in.jsonl", [{"id": f"q{i}", "prompt_ids": [5 + i, 6]} for i in range(3)])
    out = tmp_path / "out.jsonl"
    flags = {"model": GOLDENS / CHECKPOINTS[0], "input": given, "output": out, "max_new_tokens": 8}
    assert program("generate", **flags)[0] == 0
    first = out.read_bytes()
    assert program("generate", **flags)[0] == 0
    assert out.read_bytes() == first
    code, _, err = program("generate", **(flags | {"seed": 1}))
    assert code == 1
    assert "seed: 0 then, 1 now" in err
    assert out.read_bytes() == first
    assert program("generate", "--overwrite", **(flags | {"seed": 1}))[0] == 0
    assert out.read_bytes() != first
