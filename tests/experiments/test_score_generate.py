"""`score` and `generate` against transformers' golden values, through the command line."""

import json
import shutil

import numpy as np
import pytest

from caspo_jax.models import hash_checkpoint
from caspo_jax.records import question_to_record
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy
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
    assert all(s["schema"] == {"name": "score", "version": 1} for s in scores)
    for i, (row, score) in enumerate(zip(rows, scores)):
        assert len(score["logprob"]) == len(score["entropy"]) == len(row) - 2
        span = slice(1, len(row) - 1)
        np.testing.assert_allclose(score["logprob"], expected["right_token_logps"][i, span], atol=1e-4)
        np.testing.assert_allclose(score["entropy"], expected["right_entropy_nats"][i, span], atol=1e-4)


def test_outputs_may_lie_in_the_policys_own_folder(program, write, tmp_path):
    policy = shutil.copytree(get_task("graph").policy_path, tmp_path / "policy")
    given = write("in.jsonl", [{"id": "1", "prompt_ids": [5, 6], "token_ids": [7]}])
    for _ in range(2):  # the first output makes no other policy for the second run
        code, _, err = program("score", model=policy, input=given, output=policy / "out.jsonl")
        assert code == 0, err


def test_ids_that_are_numbers_and_texts_of_special_tokens_are_scored_as_they_are(program, write, tmp_path):
    """The tokenizer begins every text with a token of its own, as those of Llama do."""
    model = shutil.copytree(GOLDENS / "llama31_untied_fp32", tmp_path / "model")
    core = json.loads((model / "tokenizer.json").read_text())
    begin = next(token for token in core["added_tokens"] if token["content"] == "<|begin_of_text|>")
    core["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": begin["content"], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            begin["content"]: {"id": begin["content"], "ids": [begin["id"]], "tokens": [begin["content"]]}
        },
    }
    (model / "tokenizer.json").write_text(json.dumps(core))
    tokenizer = Policy.load(model).tokenizer
    text = "What is 2+2?"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer(text)["input_ids"] == [begin["id"], *ids]
    records = [{"id": 7, "token_ids": ids}, {"id": 0, "text": text}, {"text": text}]
    given = write("in.jsonl", [{"prompt_ids": [5, 6]} | record for record in records])
    code, _, err = program("score", model=model, input=given, output=tmp_path / "out.jsonl", batch_size=2)
    assert code == 0, err
    scores = read(tmp_path / "out.jsonl")
    assert [score["id"] for score in scores] == ["7", "0", "2"]
    for score in scores[1:]:
        np.testing.assert_allclose(score["logprob"], scores[0]["logprob"], atol=1e-4)


@pytest.mark.parametrize("kept", [0, 2, 3, 4])
def test_scores_go_on_after_the_last_whole_line(program, write, tmp_path, kept):
    given = write("in.jsonl", [{"id": str(i), "prompt_ids": [5], "token_ids": [6 + i]} for i in range(5)])
    out, manifest = tmp_path / "s.jsonl", tmp_path / "s.jsonl.manifest.json"
    flags = {"model": GOLDENS / CHECKPOINTS[0], "input": given, "output": out, "batch_size": 2}
    assert program("score", **flags)[0] == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.unlink()
    (tmp_path / "s.jsonl.partial").write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    assert program("score", **flags)[0] == 0
    assert out.read_bytes() == whole


def test_scores_of_another_dtype_are_refused(program, write, tmp_path):
    """By the dtype that is computed in, whether a flag or the checkpoint gave it."""
    given = write("in.jsonl", [{"id": str(i), "prompt_ids": [5], "token_ids": [6 + i]} for i in range(2)])
    flags = {"model": GOLDENS / CHECKPOINTS[0], "input": given, "output": tmp_path / "s.jsonl"}
    assert program("score", **flags)[0] == 0
    manifest = json.loads((tmp_path / "s.jsonl.manifest.json").read_text())
    assert manifest["config"]["dtype"] == "float32"
    assert program("score", **flags, dtype="float32")[0] == 0
    code, _, err = program("score", **flags, dtype="bfloat16")
    assert code == 1
    assert "dtype: 'float32' then, 'bfloat16' now" in err


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


@pytest.mark.parametrize("strategy", ["self_consistency", "cat"])
def test_accuracy_is_that_of_the_answers_voted_for(program, write, tmp_path, strategy):
    task = get_task("graph")
    given = write("in.jsonl", [question_to_record(q) for q in task.questions("tune", 12, seed=5)])
    output = tmp_path / "out.jsonl"
    size = {"num_samples": 4} if strategy == "self_consistency" else {"num_branches": 4}
    flags = {"model": task.policy_path, "input": given, "output": output, "max_new_tokens": 64}
    code, out, err = program("generate", strategy=strategy, **flags, **size)
    assert code == 0, err
    answers, paths = read(f"{output}.answers.jsonl"), read(output)
    voted = sum(a["correct"] for a in answers) / 12
    right = sum(t["correct"] for t in paths) / len(paths)
    assert voted != right
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(f"accuracy {voted:.3f} of 12 answers" in line for line in lines), out
    assert any(f"right paths {right:.3f} of {len(paths)} paths" in line for line in lines), out
    assert ("threshold 0: never prune" in lines) == (strategy == "cat")


def test_the_tokens_of_a_search_are_those_that_it_decoded(program, write, tmp_path):
    """Not those in its paths, which share their beginnings and hold none of a pruned branch's."""
    task = get_task("graph")
    given = write("in.jsonl", [question_to_record(q) for q in task.questions("tune", 4, seed=5)])
    flags = {"model": task.policy_path, "input": given, "max_new_tokens": 64, "num_branches": 4}
    for strategy, more, label in (
        ("cat", {"threshold": 0.9}, "tokens"),
        ("explore", {}, "tokens in the traces"),
    ):
        output, trees = tmp_path / f"{strategy}.jsonl", tmp_path / f"{strategy}.trees.jsonl"
        code, out, err = program("generate", strategy=strategy, output=output, trees=trees, **flags, **more)
        assert code == 0, err
        decoded = sum(len(node) for tree in read(trees) for node in tree["token_ids"])
        in_traces = sum(len(trace["token_ids"]) for trace in read(output))
        assert decoded != in_traces
        shown = decoded if strategy == "cat" else in_traces
        assert f"{label} {shown:,}" in [" ".join(line.split()) for line in out.splitlines()], out


def test_recommended_sampling_is_said_and_not_followed(program, write, tmp_path):
    """Who knows transformers or vLLM expects generation_config.json to be followed."""
    model, given = tmp_path / "model", write("in.jsonl", [{"id": "q", "prompt_ids": [5, 6]}])
    shutil.copytree(GOLDENS / CHECKPOINTS[0], model)
    file = model / "generation_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"temperature": 0.6, "top_p": 0.95, "top_k": None})
    )
    flags = {"model": model, "input": given, "max_new_tokens": 2}
    for own, words in (
        ({}, "recommends --temperature=0.6 --top_p=0.95: "),
        ({"temperature": 1.0}, "recommends --top_p=0.95: "),
        ({"temperature": 0.6, "top_p": 0.95}, None),
        ({"strategy": "greedy"}, None),
    ):
        code, out, err = program("generate", "--overwrite", output=tmp_path / "out.jsonl", **flags, **own)
        assert code == 0, err
        assert words in out if words else "recommends" not in out


def test_an_output_needs_no_suffix(program, write, tmp_path):
    given = write("in.jsonl", [{"id": "q", "prompt_ids": [5, 6]}])
    flags = {"model": GOLDENS / CHECKPOINTS[0], "input": given, "max_new_tokens": 4}
    for _ in range(2):  # the second finds it done
        code, _, err = program("generate", **flags, output=tmp_path / "traces")
        assert code == 0, err
    assert [t["id"] for t in read(tmp_path / "traces")] == ["q"]
    assert (tmp_path / "traces.manifest.json").is_file()


@pytest.mark.parametrize("killed", [True, False])
def test_trees_asked_for_later_are_whole(program, write, tmp_path, killed):
    given = write("in.jsonl", [{"id": f"q{i}", "prompt_ids": [5 + i, 6]} for i in range(20)])
    flags = {"model": GOLDENS / CHECKPOINTS[0], "input": given, "strategy": "cat", "dtype": "float32"}
    flags |= {"num_branches": 2, "max_new_tokens": 4, "batch_size": 2}  # three groups of questions
    whole, late = tmp_path / "whole", tmp_path / "late"
    names = ("c.jsonl", "c.jsonl.answers.jsonl", "trees.jsonl")
    code, _, err = program("generate", **flags, output=whole / names[0], trees=whole / names[2])
    assert code == 0, err
    assert program("generate", **flags, output=late / names[0])[0] == 0
    if killed:  # in the middle of the last group
        for name, kept in ((names[0], 35), (names[1], 18)):
            manifest = late / f"{name}.manifest.json"
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
            lines = (late / name).read_text().splitlines(keepends=True)
            (late / name).unlink()
            (late / f"{name}.partial").write_text("".join(lines[:kept]))
    code, _, err = program("generate", **flags, output=late / names[0], trees=late / names[2])
    assert code == 0, err
    assert {p.name for p in late.iterdir()} == {n + end for n in names for end in ("", ".manifest.json")}
    for name in names:
        assert (late / name).read_bytes() == (whole / name).read_bytes()
        assert json.loads((late / f"{name}.manifest.json").read_text())["complete"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """publish(folder, name): into a hub cache as the client lays it out, with no network behind it."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def publish(folder, name):
        home = cache / f"models--{name.replace('/', '--')}"
        for part in ("blobs", "refs", "snapshots/0a1b"):
            (home / part).mkdir(parents=True)
        (home / "refs" / "main").write_text("0a1b")
        for path in folder.iterdir():
            (home / "blobs" / path.name).write_bytes(path.read_bytes())
            (home / "snapshots" / "0a1b" / path.name).symlink_to(f"../../blobs/{path.name}")

    return publish


def test_a_hub_id_is_known_by_its_content(program, write, tmp_path, hub):
    folder = GOLDENS / CHECKPOINTS[0]
    hub(folder, "owner/policy")
    hub(GOLDENS / CHECKPOINTS[1], "owner/other")
    given = write("in.jsonl", [{"id": "q0", "prompt_ids": [5, 6], "token_ids": [7, 8, 9]}])
    assert Policy.load("owner/policy").hash == Policy.load(folder).hash == hash_checkpoint(folder)
    flags = {"input": given, "output": tmp_path / "scores.jsonl"}
    code, _, err = program("score", model="owner/policy", **flags)
    assert code == 0, err
    written = (tmp_path / "scores.jsonl").read_bytes()
    manifest = json.loads((tmp_path / "scores.jsonl.manifest.json").read_text())
    assert manifest["config"]["policy"] == hash_checkpoint(folder)
    assert set(manifest["inputs"]) == {"policy", "input"}
    assert program("score", model=folder, **flags)[0] == 0  # the same weights: it is done already
    assert (tmp_path / "scores.jsonl").read_bytes() == written
    code, _, err = program("score", model="owner/other", **flags)
    assert code == 1
    assert "policy" in err


def test_a_hub_id_can_be_hedged_with(program, write, tmp_path, hub):
    task = get_task("graph")
    hub(task.policy_path, "owner/tiny")
    questions = write("q.jsonl", [question_to_record(q) for q in task.questions("tune", 2, seed=2)])
    traces, hedged = tmp_path / "t.jsonl", tmp_path / "h.jsonl"
    flags = {"model": "owner/tiny", "input": questions, "output": traces, "max_new_tokens": 128}
    code, _, err = program("generate", strategy="greedy", **flags)
    assert code == 0, err
    for model in ("owner/tiny", task.policy_path):
        code, _, err = program("hedge", model=model, input=traces, output=hedged)
        assert code == 0, err
    manifest = json.loads((tmp_path / "h.jsonl.manifest.json").read_text())
    assert manifest["config"]["policy"] == hash_checkpoint(task.policy_path)


def test_yarn_makes_room_for_prompts_and_outputs(program, write, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(GOLDENS / CHECKPOINTS[0], folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8}
    given = write("in.jsonl", [{"id": "q0", "prompt_ids": [5, 6] * 6}])
    flags = {"model": folder, "input": given, "output": tmp_path / "out.jsonl", "strategy": "greedy"}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = program("generate", "--ignore_eos", **flags)
    assert code == 1
    assert "context of 8 (config.json: max_position_embeddings)" in err
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    code, _, err = program("generate", "--ignore_eos", "--overwrite", **flags)
    assert code == 0, err
    (trace,) = read(tmp_path / "out.jsonl")
    assert len(trace["token_ids"]) == 32 - 12
    code, _, err = program("score", model=folder, input=flags["output"], output=tmp_path / "s.jsonl")
    assert code == 0, err
    np.testing.assert_allclose(read(tmp_path / "s.jsonl")[0]["logprob"], trace["logprob"], atol=1e-4)
