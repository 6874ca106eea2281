"""Every program on every kind of damaged model folder and input file: one clear line, exit code 1, no traceback."""

import json
import shutil

import pytest

from tests.experiments.test_bad_input import MODEL, change_config, one_line

QUESTION = {"id": "a", "prompt_ids": [5, 6, 7], "gold": "1"}
OUTPUT = {"id": "a", "prompt_ids": [5, 6, 7], "token_ids": [8, 9]}
TRACE = OUTPUT | {
    "schema": {"name": "trace", "version": 1},
    "question": "q",
    "prompt": "p",
    "text": ")*",
    "finish_reason": "length",
    "logprob": [-1.0, -1.0],
    "entropy": [1.0, 1.0],
    "steps": [],
}
PAIR = {
    "id": "p",
    "kind": "wrong",
    "prompt": "p",
    "prefix": "",
    "chosen": "a",
    "rejected": "b",
    "prompt_ids": [5, 6],
    "prefix_ids": [],
    "chosen_ids": [7],
    "rejected_ids": [8],
    "ends_trace": [False, False],
}
INPUTS = {  # program: (flag of its input, a good record of it)
    "generate": ("input", QUESTION),
    "score": ("input", OUTPUT),
    "annotate": ("input", TRACE),
    "pairs": ("input", TRACE),
    "train": ("pairs_file", PAIR),
    "export": ("run", None),
    "caspo": ("input", QUESTION),
}
READERS = [name for name, (_, record) in INPUTS.items() if record]


def flags_of(name, tmp_path, model, given):
    """The least that the program needs, and an output that nothing was written to before."""
    flag, _ = INPUTS[name]
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    place = {"out_dir": out} if name in ("train", "caspo") else {"output": out / "out.jsonl"}
    out.mkdir()
    more = {"generate": {"max_new_tokens": 4}, "caspo": {"max_new_tokens": 4}, "train": {"preset": "paper"}}
    return {"model": model, flag: given, **place, **more.get(name, {})}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Damaged copies of a golden checkpoint: fault -> (folder, what the message must name)."""
    from safetensors.numpy import load_file, save_file

    base = tmp_path_factory.mktemp("models")
    name = "model.layers.1.mlp.up_proj.weight"

    def copy(fault):
        return shutil.copytree(MODEL, base / fault, ignore=shutil.ignore_patterns("expected.npz"))

    found = {"absent": (base / "nowhere", "nowhere")}
    for fault, changes, word in (
        ("architecture", {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "amba"),
        ("rope", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
    ):
        change_config(copy(fault), **changes)
        found[fault] = (base / fault, word)
    for fault in ("missing", "extra", "misshaped"):
        path = copy(fault) / "model.safetensors"
        tensors = load_file(path)
        part = tensors.pop(name)
        if fault == "extra":
            tensors |= {name: part, "model.layers.1.mlp.side_proj.weight": part.copy()}
        elif fault == "misshaped":
            tensors[name] = part[:-1].copy()
        save_file(tensors, path)
        found[fault] = (base / fault, "side_proj" if fault == "extra" else name)
    (copy("pickle") / "model.safetensors").rename(base / "pickle" / "pytorch_model.bin")
    found["pickle"] = (base / "pickle", "pytorch_model.bin")
    (copy("torn") / "model.safetensors").write_bytes(b"\x00" * 16)
    found["torn"] = (base / "torn", "model.safetensors")
    (copy("config") / "config.json").write_text("{")
    found["config"] = (base / "config", "config.json")
    return found


@pytest.mark.parametrize("name", INPUTS)
def test_damaged_model_folders(program, tmp_path, write, models, name):
    _, record = INPUTS[name]
    given = write("in.jsonl", [record]) if record else tmp_path
    for folder, word in models.values():
        one_line(program(name, **flags_of(name, tmp_path, folder, given)), word)


@pytest.mark.parametrize("name", READERS)
def test_damaged_input_files(program, tmp_path, write, name):
    _, record = INPUTS[name]
    good = json.dumps(record)
    cases = [
        ("cut", f'{good}\n{{"id": "b", \n', "cut.jsonl:2"),
        ("list", f"{good}\n[1, 2]\n", "list.jsonl:2"),
        ("fields", f'{good}\n{{"id": "b"}}\n', "fields.jsonl:2"),
        ("nothing", "", "nothing.jsonl"),
        ("latin", good + "\n" + '{"id": "\xff"}\n', "latin.jsonl:2"),
    ]
    for case, text, word in cases:
        path = tmp_path / f"{case}.jsonl"
        path.write_bytes(text.encode("latin-1"))
        one_line(program(name, **flags_of(name, tmp_path, MODEL, path)), word)
    one_line(program(name, **flags_of(name, tmp_path, MODEL, tmp_path / "absent.jsonl")), "absent.jsonl")
    one_line(program(name, **flags_of(name, tmp_path, MODEL, tmp_path)), tmp_path.name)
    # Nothing was begun, so that the same command works once the file is mended.
    assert not list(tmp_path.glob("out*/**/*.json*"))


def test_half_a_character_to_score(program, tmp_path, write):
    from caspo_jax.tasks import get_task

    given = write("in.jsonl", [{"id": "a", "prompt": "a", "text": "x\ud83d"}])
    flags = flags_of("score", tmp_path, get_task("graph").policy_path, given)
    one_line(program("score", **flags), "in.jsonl:1: `text`: character 1 is a lone surrogate")


@pytest.mark.parametrize("name", READERS)
def test_tokens_that_no_model_takes(program, tmp_path, write, name):
    _, record = INPUTS[name]
    for change, word in (
        ({"prompt_ids": []}, "empty"),
        ({"prompt_ids": [5, 512]}, "512"),
        ({"prompt_ids": [5, -1]}, "prompt_ids"),
        ({"prompt_ids": [5] * 100_000}, "context"),
    ):
        given = write("in.jsonl", [record | change])
        one_line(program(name, **flags_of(name, tmp_path, MODEL, given)), word, "in.jsonl:1")
    assert not list(tmp_path.glob("out*/**/*.json*"))


STEP = {"start": 0, "end": 2, "token_start": 0, "token_end": 2, "text": ")*", "verdict": "unknown"}


def test_traces_that_are_not_what_a_program_reads(program, tmp_path, write):
    """Of another tokenizer, and never annotated: both would give an empty result without a word."""
    other = TRACE | {"id": "b", "text": "what another tokenizer makes of 8 and 9"}
    given = write("in.jsonl", [TRACE, other])
    flags = flags_of("annotate", tmp_path, MODEL, given)
    one_line(program("annotate", **flags), "in.jsonl:2", "'b'", "give the policy that wrote it")
    assert not list(flags["output"].parent.iterdir())
    bare = tmp_path / "bare"
    shutil.copytree(MODEL, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    one_line(program("annotate", **flags_of("annotate", tmp_path, bare, given)), "bare", "tokenizer.json")
    given = write("steps.jsonl", [TRACE | {"steps": [STEP]}])
    one_line(program("pairs", **flags_of("pairs", tmp_path, MODEL, given)), "steps.jsonl", "annotate")


@pytest.mark.parametrize("name", ["score", "annotate", "pairs"])
def test_one_id_for_two_outputs(program, tmp_path, write, name):
    _, record = INPUTS[name]
    given = write("in.jsonl", [record, record])
    one_line(program(name, **flags_of(name, tmp_path, MODEL, given)), "in.jsonl:2", "'a'")


@pytest.mark.parametrize(
    "name, flags, word",
    [
        ("annotate", {"rollout_threshold": 0.5}, "--rollout_threshold goes with --verifier=rollouts"),
        (
            "annotate",
            {"verifier": "judge", "judge": MODEL, "judge_prompt": "nowhere.txt"},
            "--judge_prompt=nowhere.txt: no such file",
        ),
        ("annotate", {"verifier": "gold", "labels": "labels.jsonl"}, "--labels"),
        ("annotate", {"verifier": "exact"}, "tiny policy"),
        ("annotate", {"verifier": "labels", "labels": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("pairs", {"judge": "model"}, "--judge"),
        ("pairs", {"verifier": "labels"}, "--labels"),
        ("train", {"lora_alpha": 2.0}, "--lora_rank"),
        ("export", {"adapter": "folder"}, "--adapter"),
        ("caspo", {"verifier": "equations", "rollouts": 3}, "--rollouts"),
        ("caspo", {"verifier": "judge"}, "--judge"),
        ("caspo", {"root_branches": 2}, "--explore"),
        ("caspo", {"num_samples": 8, "temperature": 0}, "num_samples"),
    ],
)
def test_contradictory_flags(program, tmp_path, write, name, flags, word):
    _, record = INPUTS[name]
    given = write("in.jsonl", [record]) if record else tmp_path
    one_line(program(name, **(flags_of(name, tmp_path, MODEL, given) | flags)), word)
    assert not list(tmp_path.glob("out*/**/*.json*"))
