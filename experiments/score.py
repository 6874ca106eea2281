"""Teacher-forced log-prob and entropy of every token of given outputs.

Input, one JSON object a line: `id`, and `prompt_ids` + `token_ids`, or `prompt` (or `question`) + `text`.
Output: `{"schema", "id", "logprob": [...], "entropy": [...]}`, entry t for the distribution that predicted token t, in nats, at
temperature 1 over the full vocabulary.

    python -m experiments.score --model=POLICY --input=traces.jsonl --output=scores.jsonl
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import common

if TYPE_CHECKING:
    from caspo_jax.models import ModelConfig

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    common.define_model_flags()
    flags.DEFINE_string("input", None, "JSONL of outputs to score", required=True)
    flags.DEFINE_string("output", None, "JSONL of scores", required=True)
    flags.DEFINE_integer("batch_size", 16, "outputs scored together", lower_bound=1)


def _read(record: dict[str, Any], tokenizer: Any, config: ModelConfig) -> tuple[list[int], list[int]]:
    """Prompt ids and output ids of a record."""
    from caspo_jax.errors import UserError
    from caspo_jax.models import check_prompt_ids, encode_prompt
    from caspo_jax.models.tokenizer import opened_once, whole_text
    from caspo_jax.records import question_from_record

    question = question_from_record({k: v for k, v in record.items() if k not in ("gold", "answer")})
    if record.get("token_ids") is not None:
        ids = record["token_ids"]
        if not isinstance(ids, list) or any(type(i) is not int or i < 0 for i in ids):
            raise UserError("`token_ids` must be a list of token ids (integers, 0 or more)")
    elif isinstance(record.get("text"), str):
        if tokenizer is None:
            raise UserError("the checkpoint has no tokenizer, so give `token_ids`, not `text`")
        ids = tokenizer(whole_text(record["text"], "`text`"), add_special_tokens=False)["input_ids"]
    else:
        raise UserError("an output to score needs `token_ids` or `text`")
    if not ids:
        raise UserError("there is no token to score")
    prompt = list(encode_prompt(tokenizer, question))
    if question.prompt_ids is None and isinstance(record.get("text"), str):
        prompt = opened_once(tokenizer, prompt, record["text"])
    check_prompt_ids([*prompt, *ids], config, "prompt_ids + token_ids")
    return prompt, list(ids)


def main() -> None:
    """Score a file."""
    from caspo_jax.confidence.scoring import score_outputs
    from caspo_jax.errors import UserError
    from caspo_jax.outputs import ROWS, JsonlOutput, Manifest, manifest_path
    from caspo_jax.records import schema
    from caspo_jax.store import parse_at, read_jsonl

    common.check_outputs(("output",))
    if next(read_jsonl(FLAGS.input), None) is None:
        raise UserError(f"{FLAGS.input}: nothing in it")
    policy = common.load_policy()
    model, tokenizer = policy.model, policy.tokenizer
    ids, outputs = [], []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(read_jsonl(FLAGS.input)):
        prompt, output = parse_at(where, lambda r: _read(r, tokenizer, model.config), record)
        ids.append(str(number if record.get("id") is None else record["id"]))
        if ids[-1] in seen:
            raise UserError(f"{where}: id {ids[-1]!r} was used before, at {seen[ids[-1]]}")
        seen[ids[-1]] = where
        outputs.append((prompt, output))
    manifest = Manifest.open(
        manifest_path(FLAGS.output),
        program="score",
        config={"policy": policy.hash, "dtype": str(model.dtype), "batch_size": FLAGS.batch_size},
        inputs={"input": FLAGS.input},
        free=ROWS,
        overwrite=FLAGS.overwrite,
    )
    written = JsonlOutput(FLAGS.output, manifest, schema=schema("score"))
    if not written.complete:
        with common.Progress(len(ids), "score", unit="output") as progress:
            for start in range(0, len(ids), FLAGS.batch_size):
                part = slice(start, start + FLAGS.batch_size)
                if not set(ids[part]) <= written.done:
                    scores = score_outputs(model, outputs[part], min(FLAGS.batch_size, len(ids)))
                    written.append(
                        [{"id": i, "logprob": lp, "entropy": h} for i, (lp, h) in zip(ids[part], scores)]
                    )
                progress.update(len(ids[part]))
        written.finish(outputs=len(ids))
    common.closing(f"scores in {FLAGS.output}", {"outputs": len(ids)})


if __name__ == "__main__":
    define_flags()
    common.run(main)
