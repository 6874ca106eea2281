"""Trains the tiny policy of an embedded task from scratch and writes it in Hugging Face layout.

The policies shipped in caspo_jax/tasks/policies were made by

    python -m experiments.train_tiny --task=graph --out_dir=SKILLS
    python -m experiments.train_tiny --task=graph --init=SKILLS --out_dir=DIR

    python -m experiments.train_tiny --task=chain --init=caspo_jax/tasks/policies/graph --out_dir=FIRST
    python -m experiments.train_tiny --task=chain --init=FIRST --steps=400 --learning_rate=1.5e-3 --out_dir=DIR

The first run learns the skills: looking up, sums, working shown; its text is always
right. The second learns to write as the base policy does, from text as hurried people write it: some steps skip the
working, which a small decoder often gets wrong, and now and then a result is off by one or by ten. So the base makes
two kinds of natural mistakes: what it cannot do in one go, and slips that it imitates and need not make. The chain
task's policy starts from the graph task's, whose sums it needs: a tokenizer of its own, and the old embedding of every
token that both have.

The policy appears under its name only when training is complete; until then its newest state is beside it, as .NAME.export. A
run that was interrupted starts anew.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models import (
    Decoder,
    ModelConfig,
    hash_checkpoint,
    load_caspo_json,
    load_pretrained,
    save_pretrained,
)
from caspo_jax.outputs import manifest_path, read_manifest
from caspo_jax.padding import multiple
from caspo_jax.store import hash_path
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy
from caspo_jax.training.stages.whole_folder import write_once
from experiments import common
from experiments.train_tiny_text import Text

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_string("task", "graph", "embedded task: graph or chain")
    flags.DEFINE_string("out_dir", None, "where the policy goes", required=True)
    flags.DEFINE_string(
        "init", None, "a policy of a first run, to go on from with the task's final mix of phrasings"
    )
    flags.DEFINE_string(
        "traces",
        None,
        "learn the outputs of these traces (JSONL) instead of text written by the task; goes with --init",
    )
    flags.DEFINE_integer("steps", None, "updates; default: 6000, after --init 1000", lower_bound=1)
    flags.DEFINE_integer("batch_size", 24, "rows an update", lower_bound=1)
    flags.DEFINE_float(
        "learning_rate",
        None,
        "peak rate, cosine to a twentieth; default: 4e-3, after --init 3e-3",
        lower_bound=0.0,
    )
    flags.DEFINE_integer("hidden_size", 96, "width", lower_bound=1)
    flags.DEFINE_integer("layers", 4, "depth", lower_bound=1)
    flags.DEFINE_float(
        "drill",
        None,
        "share of rows that are exercises: bare sums, looking up; default: 0.5, after --init 0.4",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer(
        "copying",
        None,
        "updates at the start on repeated random tokens: heads that look things up; default: 700, after --init 0",
        lower_bound=0,
    )
    common.define_seed_flag("seed of weights and text")
    flags.DEFINE_bool(
        "overwrite", False, "replace a policy that has other settings, or that this program did not write"
    )
    common.define_terminal_flags()


def _setting(name: str) -> Any:
    """A flag, or its default of this stage."""
    first = {"steps": 6000, "learning_rate": 4e-3, "drill": 0.5, "copying": 700}
    second = {"steps": 1000, "learning_rate": 3e-3, "drill": 0.4, "copying": 0}
    value = getattr(FLAGS, name)
    return (second if FLAGS.init else first)[name] if value is None else value


def _config(tokenizer: Any) -> dict[str, Any]:
    hidden = FLAGS.hidden_size
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": multiple(len(tokenizer), 16),
        "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3,
        "num_hidden_layers": FLAGS.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": hidden // 4,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.05,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
        "use_cache": True,
    }


def _start(text: Text) -> tuple[Any, Any]:
    """Model and tokenizer before the first update: new ones, or those of --init, with a tokenizer of the task."""
    if not FLAGS.init:
        tokenizer = text.tokenizer()
        return Decoder(ModelConfig.from_hf(_config(tokenizer)), rngs=nnx.Rngs(FLAGS.seed)), tokenizer
    model, tokenizer = load_pretrained(common.require_folder(FLAGS.init, "init"))
    if load_caspo_json(FLAGS.init).get("task") == text.task.name:
        return model, tokenizer
    own = text.tokenizer()
    return with_tokenizer(model, tokenizer, own, FLAGS.seed), own


def _traces(model: Any, tokenizer: Any) -> tuple[Any, ...]:
    """Those of --traces, checked against the vocabulary and the context. Raises UserError as `Policy.each_trace` does."""
    return tuple(Policy(model, tokenizer, FLAGS.init, "", {}).each_trace(FLAGS.traces))


def with_tokenizer(model: Any, old: Any, new: Any, seed: int) -> Any:
    """The model with a row of its embedding for each token of another tokenizer: the old row where both have it."""
    before = np.asarray(model.embed[...])
    config = dataclasses.replace(model.config, vocab_size=multiple(len(new), 16))
    adopted = Decoder(config, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    embed = rng.normal(0.0, before.std(), adopted.embed[...].shape).astype(before.dtype)
    known = old.get_vocab()
    for token, row in new.get_vocab().items():
        if token in known:
            embed[row] = before[known[token]]
    nnx.update(adopted, nnx.state(model, nnx.filterlib.Not(nnx.filterlib.PathContains("embed"))))
    adopted.embed[...] = jax.numpy.asarray(embed)
    return adopted


def _muon(schedule: Any) -> Any:
    """Muon for the layers' matrices, AdamW for the rest: a sixth of the updates that AdamW alone needs here."""
    from optax.contrib import MuonDimensionNumbers, muon

    def matrices(params: Any) -> Any:
        stacked = MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
        return jax.tree.map(lambda p: stacked if p.ndim == 3 else None, params)

    return muon(
        schedule,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
        weight_decay=0.01,
        adam_b2=0.98,
    )


def main() -> None:
    """Train and export."""
    task = get_task(FLAGS.task)
    common.check_out_dir()  # found out now, not after hours of training
    if FLAGS.traces and not FLAGS.init:
        raise UserError("--traces goes with --init: traces alone teach no skills")
    sources = [common.require_folder(FLAGS.init, "init")] if FLAGS.init else []
    if FLAGS.traces:
        sources.append(Path(FLAGS.traces))
    settings = {
        "task": task.name,
        **{name: _setting(name) for name in ("steps", "learning_rate", "drill", "copying")},
        **{name: FLAGS[name].value for name in ("batch_size", "hidden_size", "layers", "seed")},
        **({"init": hash_checkpoint(FLAGS.init)} if FLAGS.init else {}),
        **({"traces": hash_path(FLAGS.traces)} if FLAGS.traces else {}),
    }
    write_once(
        "train_tiny", sources, FLAGS.out_dir, settings, lambda folder: _train(task, folder), FLAGS.overwrite
    )
    counts = read_manifest(manifest_path(FLAGS.out_dir, folder=True))["counts"]
    common.closing(f"policy in {FLAGS.out_dir}", counts)


def _train(task: Any, folder: Path) -> dict[str, Any]:
    """Trains and writes the policy to a folder, now and then before the end too; returns what the manifest counts."""
    text = Text(
        task=task,
        second=bool(FLAGS.init),
        drill=_setting("drill"),
        copying=_setting("copying"),
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )
    model, tokenizer = _start(text)
    if FLAGS.traces:
        text = dataclasses.replace(text, traces=_traces(model, tokenizer))
    graphdef, params = nnx.split(model)
    steps, rate = _setting("steps"), _setting("learning_rate")
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 10), steps, rate / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), _muon(schedule))

    def loss_fn(params: Any, ids: Any, mask: Any) -> Any:
        logits = nnx.merge(graphdef, params)(ids[:, :-1])
        # As one-hot products: gathers have scatter-adds for gradients, which are slow on a CPU.
        target = jax.nn.one_hot(ids[:, 1:], logits.shape[-1])
        nll = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(target * logits, axis=-1)
        return jnp.sum(nll * mask[:, 1:]) / jnp.sum(mask)

    @jax.jit
    def step(params: Any, state: Any, ids: Any, mask: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_fn)(params, ids, mask)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    def export(params: Any) -> None:
        caspo = {"step_delimiter": "\n\n", "task": task.name}
        save_pretrained(nnx.merge(graphdef, params), tokenizer, folder, caspo=caspo)

    state = optimizer.init(params)
    losses, started = [], time.monotonic()
    with common.Progress(steps, f"train {task.name}", unit="step") as progress:
        for i, (ids, mask) in zip(range(steps), text.batches(tokenizer), strict=False):
            params, state, loss = step(params, state, ids, mask)
            losses.append(loss)
            progress.update()
            if (i + 1) % 250 == 0:
                mean = float(jnp.mean(jnp.stack(losses[-250:])))
                common.say(f"step {i + 1}  loss {mean:.4f}  {time.monotonic() - started:.0f} s")
                export(params)
    export(params)
    return {"parameters": sum(p.size for p in jax.tree.leaves(params))}


if __name__ == "__main__":
    common.tune_malloc()
    define_flags()
    common.run(main, resumes=False)
