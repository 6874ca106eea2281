"""The adapter against the model's own logits, and tasks of lm-eval run with it; needs the extra lm-eval."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("lm_eval", reason="pip install caspo_jax[lm-eval]")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from caspo_jax.errors import UserError
from caspo_jax.evaluation.lm_eval_adapter import CaspoLM
from caspo_jax.models import Decoder, RopeConfig
from caspo_jax.tasks import get_task
from tests.shapes import small_shape

TASK = get_task("graph")
QUESTION = TASK.questions("test", 1, 0)[0].question


@pytest.fixture(scope="module")
def lm():
    return CaspoLM(str(TASK.policy_path), batch_size=4, max_gen_toks=24)


def request(kind, *arguments, number=0):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=number)


@jax.jit
def forward(params, ids, mask):
    return jax.nn.log_softmax(nnx.merge(FORWARD["graphdef"], params)(ids, mask=mask).astype(jnp.float32))


FORWARD = {}


def logprobs(lm, ids):
    """[T-1, V] of one row, alone in its batch."""
    FORWARD["graphdef"], params = nnx.split(lm.model)
    padded = np.zeros((1, 256), np.int32)  # one shape for all, compiled once
    padded[0, : len(ids)] = ids
    mask = (np.arange(256) < len(ids))[None]
    return np.asarray(forward(params, padded, mask))[0, : len(ids) - 1]


def greedy(lm, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(logprobs(lm, [*ids, 0])[-1].argmax()))
    return ids[-count:]


def test_loglikelihood_is_the_sum_of_the_model_s_own_log_probs(lm):
    context = lm.tok_encode(QUESTION)
    best = lm.tokenizer.decode(greedy(lm, context, 3))
    pairs = [(QUESTION, best), (QUESTION, "zz zz"), ("", QUESTION), ("a = 3", " b = 4"), (QUESTION, "12")]
    found = lm.loglikelihood([request("loglikelihood", *pair) for pair in pairs])
    for (before, after), (value, is_greedy) in zip(pairs, found):
        context = lm.tok_encode(before) or [lm.prefix_token_id]
        whole = lm.tok_encode(before + after) if before else [*context, *lm.tok_encode(after)]
        scores = logprobs(lm, whole)
        targets = whole[len(context) :]
        rows = scores[len(context) - 1 :]
        assert value == pytest.approx(rows[np.arange(len(targets)), targets].sum(), abs=1e-3)
        assert is_greedy == (rows.argmax(axis=-1) == targets).all()
    assert found[0][1]
    assert not found[1][1]


def test_the_context_is_the_one_that_yarn_makes(lm):
    rope = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=64)
    model = Decoder(small_shape(max_position_embeddings=64, rope=rope), rngs=nnx.Rngs(0))
    assert CaspoLM(model, lm.tokenizer).max_length == 256
    assert CaspoLM(model, lm.tokenizer, max_length=64).max_length == 64


def test_rolling_predicts_every_token_once(lm):
    short = CaspoLM(lm.model, lm.tokenizer, batch_size=4, max_length=32)
    text = " ".join([QUESTION] * 4)
    ids = short.tok_encode(text, add_special_tokens=False)
    assert len(ids) > 64
    expected = 0.0
    size = short.max_length - 1
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        # The last window is as long as the others, so its first tokens are context.
        begin = max(0, start + len(piece) - size)
        window = [short.prefix_token_id if begin == 0 else ids[begin - 1], *ids[begin : start + len(piece)]]
        rows = logprobs(short, window)[-len(piece) :]
        expected += rows[np.arange(len(piece)), piece].sum()
    (found,) = short.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert found == pytest.approx(expected, abs=1e-2)


def test_generation_is_greedy_and_stops(lm):
    ids = lm.tok_encode(QUESTION)
    whole = lm.tokenizer.decode(greedy(lm, ids, 24))
    end = whole[6:8]
    requests = [
        request("generate_until", QUESTION, {"until": [end], "max_gen_toks": 24, "do_sample": False}),
        request("generate_until", QUESTION, {"until": [], "max_gen_toks": 3, "num_beams": 1}, number=1),
        request(
            "generate_until", QUESTION, {"until": [end], "max_gen_toks": 24, "temperature": 0.0}, number=2
        ),
    ]
    first, second, third = lm.generate_until(requests)
    assert first == third == whole.split(end)[0]
    assert second == lm.tokenizer.decode(greedy(lm, ids, 3))


def test_sampled_repeats_differ(lm):
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 16}
    requests = [request("generate_until", QUESTION, settings, number=i) for i in range(8)]
    assert len(set(lm.generate_until(requests))) > 1


def test_what_is_not_supported_is_refused(lm):
    with pytest.raises(UserError, match="num_beams"):
        lm.generate_until([request("generate_until", QUESTION, {"num_beams": 4})])
    with pytest.raises(UserError, match="does not fit"):
        CaspoLM(lm.model, lm.tokenizer, max_length=4).loglikelihood([request("loglikelihood", "a", QUESTION)])
    with pytest.raises(UserError, match="unknown model arguments: quantize"):
        CaspoLM(lm.model, lm.tokenizer, quantize=True)


def test_tasks_of_lm_eval_run(lm, tmp_path):
    questions = TASK.questions("test", 4, 1)
    rows = [{"question": q.question, "gold": q.gold, "wrong": str(int(q.gold) + 1)} for q in questions]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (tmp_path / "choice.yaml").write_text(
        f"task: toy_choice\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_choice: ['answer: {{gold}}', 'answer: {{wrong}}']\ndoc_to_target: 0\nmetric_list:\n  - metric: acc\n"
    )
    (tmp_path / "text.yaml").write_text(
        f"task: toy_text\n{common}output_type: generate_until\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: '{{gold}}'\ngeneration_kwargs:\n  until: ['zzz']\n  max_gen_toks: 12\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    (tmp_path / "rolling.yaml").write_text(
        f"task: toy_rolling\n{common}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{question}}'\nmetric_list:\n  - metric: bits_per_byte\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    names = ["toy_choice", "toy_text", "toy_rolling"]
    results = lm_eval.simple_evaluate(
        model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    assert set(results["results"]) == set(names)
    assert 0 <= results["results"]["toy_choice"]["acc,none"] <= 1
    bits = results["results"]["toy_rolling"]["bits_per_byte,none"]
    total = sum(
        lm.loglikelihood_rolling([request("loglikelihood_rolling", q.question)])[0] for q in questions
    )
    size = sum(len(q.question.encode()) for q in questions)
    assert bits == pytest.approx(-total / size / np.log(2), rel=1e-6)
    assert len(results["samples"]["toy_text"]) == 4
