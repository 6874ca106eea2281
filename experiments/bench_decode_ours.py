"""caspo_jax's side of bench_decode: whole calls of `generate` and `cat_search`, and what their loop needs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench_train_ours import device_peak, load, matmul_rate
from experiments.bench_worker import reclaim, serve, versions

DELIMITED = 20  # every so many-th word ends a step: steps of about so many random tokens
PRUNED = 0.2  # share of a plain run's step confidences below CaT's threshold
# The skewed set: outputs end by themselves, this many times before the limit on average; so many of each prompt.
LONG, SAMPLES = 8, 4


class Side:
    """Answers `ready`, `run`, `cat`, `plain`, `skewed`, `temporaries` and `rates`."""

    def __init__(self, job: dict[str, Any]):
        import jax

        from caspo_jax.types import Question

        self._job = job
        self._model = load(job)
        self._tokenizer = word_tokenizer(self._model.config.vocab_size)
        self._questions = [Question(id=str(i), prompt_ids=tuple(ids)) for i, ids in enumerate(job["prompts"])]
        self._key = jax.random.key(0)
        self._threshold: float | None = None

    def __call__(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        do: dict[str, Callable[..., dict[str, Any]]] = {
            "ready": self._ready,
            "run": self._run,
            "plain": self._plain,
            "cat": self._cat,
            "skewed": self._skewed,
            "temporaries": self._temporaries,
            "rates": self._rates,
        }
        return do[command.pop("do")](**command)

    def _ready(self) -> dict[str, Any]:
        import jax

        return {"versions": versions("jax", "flax"), "device": jax.local_devices()[0].device_kind}

    def _run(self, sampling: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """All prompts, one output each."""
        from caspo_jax.sampling import generate

        config = self._sample(**sampling)
        reclaim()
        started = time.perf_counter()
        traces = generate(self._model, self._tokenizer, self._questions, config, self._key)
        return self._measured(started, sum(len(trace.token_ids) for trace in traces))

    def _plain(self) -> dict[str, Any]:
        """The first prompt, K outputs of it."""
        from caspo_jax.sampling import generate

        config = self._sample(temperature=1.0, num_samples=self._job["branches"])
        started = time.perf_counter()
        traces = generate(
            self._model,
            self._tokenizer,
            self._questions[:1],
            config,
            self._key,
            step_confidence="mean_logprob",
        )
        answer = self._measured(started, sum(len(trace.token_ids) for trace in traces))
        if self._threshold is None:
            steps = [step.confidence for trace in traces for step in trace.steps]
            self._threshold = float(np.quantile([c for c in steps if c is not None], PRUNED))
        return answer | {"steps": max(len(trace.token_ids) for trace in traces)}

    def _cat(self) -> dict[str, Any]:
        """The first prompt, a tree of K branches over it that prunes and forks to the last token."""
        from caspo_jax.sampling import CatConfig, cat_search

        if self._threshold is None:
            self._plain()
        assert self._threshold is not None
        branches = self._job["branches"]
        config = CatConfig(
            num_branches=branches,
            threshold=self._threshold,
            expand=branches,
            # More than ever finish: every path ends at the limit, all in one iteration.
            num_answers=branches + 1,
            sample=self._sample(temperature=1.0),
        )
        started = time.perf_counter()
        (result,) = cat_search(self._model, self._tokenizer, self._questions[:1], config, self._key)
        answer = self._measured(started, result.tokens)
        nodes = result.tree.nodes
        parents = [node.parent for node in nodes if node.parent >= 0]
        return answer | {
            "steps": max(len(path.token_ids) for path in result.paths),
            "pruned": sum(node.status == "pruned" for node in nodes),
            "forks": len(parents) - len(set(parents)),
        }

    def _skewed(self, questions: int) -> dict[str, Any]:
        """Prompts, `SAMPLES` outputs each, that end by themselves, `LONG` times before the limit on average."""
        import jax

        from caspo_jax.sampling import SampleConfig, Usage, generate
        from caspo_jax.types import Question

        shape, new = self._model.config, self._job["new_tokens"]
        rng = np.random.default_rng(0)
        length = len(self._job["prompts"][0])
        records = [
            Question(id=f"s{i}", prompt_ids=tuple(rng.integers(16, shape.vocab_size, length).tolist()))
            for i in range(questions)
        ]
        ends = range(2, shape.vocab_size, max(1, new // LONG))  # random logits are nearly flat
        self._model.config = dataclasses.replace(shape, eos_token_ids=tuple(ends))
        answers = []
        try:
            for _ in range(2):  # the first compiles
                usage = Usage()
                started = time.perf_counter()
                traces = generate(
                    self._model,
                    self._tokenizer,
                    records,
                    SampleConfig(max_new_tokens=new, num_samples=SAMPLES),
                    jax.random.key(0),
                    batch_size=len(self._job["prompts"]),
                    usage=usage,
                )
                lengths = [len(trace.token_ids) for trace in traces]
                answers.append(self._measured(started, sum(lengths)))
        finally:
            self._model.config = shape
        return answers[-1] | {
            "live_slot_steps": usage.live,
            "slot_steps": usage.slots,
            "mean_length": float(np.mean(lengths)),
            "longest": max(lengths),
        }

    def _temporaries(self) -> dict[str, Any]:
        return loop_temporaries(self._model, self._job)

    def _rates(self, read: int) -> dict[str, Any]:
        return {"matmul": matmul_rate(self._job["dtype"]), "copy": copy_rate(read)}

    def _sample(self, **changes: Any) -> Any:
        from caspo_jax.sampling import SampleConfig

        return SampleConfig(max_new_tokens=self._job["new_tokens"], ignore_eos=True, **changes)

    def _measured(self, started: float, tokens: int) -> dict[str, Any]:
        return {"seconds": time.perf_counter() - started, "tokens": tokens, "peak": device_peak()}


def loop_temporaries(model: Any, job: dict[str, Any]) -> dict[str, int]:
    """Bytes of temporaries that the compiler plans for the loops of plain sampling, of CaT and of CaT with a queue, and of
    their cache.

    Args:
      model: a Decoder.
      job: `branches`, `prompts` (the first one's length) and `new_tokens` say how large the search is.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from caspo_jax.models import copy_rows
    from caspo_jax.models.cache_rows import load_prompt
    from caspo_jax.sampling import CatConfig, Knobs, SampleConfig, build_automaton, init_state, make_policy
    from caspo_jax.sampling.batch import start_cache
    from caspo_jax.sampling.loop import donated_program
    from caspo_jax.sampling.model_decode import ApartParams, ModelDecode, decode_params
    from caspo_jax.sampling.refill import Queue, refillable, with_queue

    settings = CatConfig(num_branches=job["branches"], sample=SampleConfig(max_new_tokens=job["new_tokens"]))
    graphdef, params = nnx.split(model)
    chosen = decode_params(graphdef, params)
    automaton = build_automaton([b"ab"] * model.config.vocab_size, "\n\n")

    def build() -> Any:
        prompt = jnp.zeros((1, len(job["prompts"][0])), jnp.int32)
        logits, cache = nnx.merge(graphdef, params).prefill(prompt, prompt == 0, 0)
        return init_state(
            start_cache(cache, job["branches"], job["new_tokens"], apart=isinstance(chosen, ApartParams)),
            logits,
            jnp.zeros((1, 2), jnp.uint32),
            jnp.ones(1, jnp.int32),
            automaton,
            Knobs.of(settings),
            num_slots=job["branches"],
            capacity=job["new_tokens"],
        )

    def queued(state: Any) -> Any:
        k, v = jax.tree.map(lambda x: x[:, :0], (state.cache.k, state.cache.v))
        prompts = dataclasses.replace(state.cache, k=k, v=v)
        one, many = jnp.zeros((), jnp.int32), jnp.zeros(1, jnp.int32)
        waiting = Queue(
            cache=prompts,
            logits=state.logits[:, 0],
            prompt=many,
            keys=jnp.zeros((1, 2), jnp.uint32),
            prompt_length=many,
            first_rank=many,
            unit=many,
            size=one,
            roots=one,
            more=one > 0,
        )
        return with_queue(refillable(state, 1), waiting)

    state = jax.eval_shape(build)
    sizes = {"cache": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))}
    programs = {
        "plain": ("self_consistency", state),
        "cat": ("cat", state),
        "refilled": ("cat", jax.eval_shape(queued, state)),
    }
    for name, (strategy, shapes) in programs.items():
        policy = make_policy(
            ModelDecode(graphdef), copy_rows, settings, strategy=strategy, load_prompt=load_prompt
        )
        analysis = donated_program(chosen, shapes, policy).compile().memory_analysis()
        assert analysis is not None
        sizes[name] = analysis.temp_size_in_bytes
    return sizes


def word_tokenizer(vocab_size: int) -> Any:
    """Every id is a word of its own; one in `DELIMITED` ends a step."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}" + ("\n\n" if i % DELIMITED == 0 else " "): i for i in range(vocab_size)}
    core = Tokenizer(WordLevel(words, unk_token=next(iter(words))))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def copy_rate(size: int, repeats: int = 8) -> float:
    """Bytes a second, read and written together, of copying `size` bytes: the best of `repeats`."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones(max(1, size // 4), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    add(array).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        add(array).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * array.nbytes / best


if __name__ == "__main__":
    serve(Side(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
