"""A policy as a model of EleutherAI's lm-evaluation-harness, so that any of its tasks runs on it.

Needs the extra `caspo_jax[lm-eval]`:

    import lm_eval
    from caspo_jax.evaluation.lm_eval_adapter import CaspoLM

    results = lm_eval.simple_evaluate(model=CaspoLM("path/of/policy"), tasks=["arc_easy"])
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from caspo_jax.confidence import model_token_stats
from caspo_jax.errors import UserError
from caspo_jax.models import encode_prompt, eos_ids, load_pretrained
from caspo_jax.padding import groups, padded_rows
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.sharding import batch_ways, mesh_of
from caspo_jax.types import Question

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise UserError("lm-eval is not installed: pip install 'caspo_jax[lm-eval]'") from error

_BUCKET = 64  # the least step of row lengths
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "num_return_sequences": 1}


@functools.partial(jax.jit, static_argnames="graphdef")
def _stats(graphdef: Any, params: Any, token_ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = model_token_stats(nnx.merge(graphdef, params), token_ids, mask, ("logprob", "top1_id"))
    assert found.logprob is not None
    assert found.top1_id is not None
    return found.logprob, found.top1_id


@register_model("caspo_jax")
class CaspoLM(TemplateLM):
    """Log-likelihoods by one teacher-forced pass, generation by the library's own decode loop.

    Args:
      policy: folder or hub id of the policy; or a Decoder, with its tokenizer beside it.
      tokenizer: of a Decoder that was given.
      batch_size: rows on the device at once; of long texts that are scored, fewer.
      max_length: tokens of context (default: the model's).
      max_gen_toks: most tokens of an output, where a task sets none.
      dtype: compute dtype of a policy that is loaded (default: the checkpoint's).
      seed: of sampled outputs.
    """

    def __init__(
        self,
        policy: Any,
        tokenizer: Any = None,
        *,
        batch_size: int | str = 16,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str | None = None,
        seed: int = 0,
        **ignored: Any,
    ) -> None:
        super().__init__()
        unknown = {name for name, value in ignored.items() if value is not None} - {
            "device",
            "max_batch_size",
        }
        if unknown:
            raise UserError(f"unknown model arguments: {', '.join(sorted(unknown))}")
        if isinstance(policy, str):
            policy, tokenizer = load_pretrained(policy, dtype=dtype)
        if tokenizer is None:
            raise UserError("lm-eval's tasks are text: the policy needs a tokenizer")
        self.model = policy
        self.tokenizer = tokenizer
        self.batch_size = 16 if batch_size == "auto" else int(batch_size)
        self.max_length = int(max_length or policy.config.context)
        self.max_gen_toks = int(max_gen_toks)
        self._key = jax.random.key(seed)
        self._generations = 0

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return eos_ids(self.model.config, self.tokenizer)[0]

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read as: the tokenizer's BOS, or the end-of-sequence token."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's request cache."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The tokenizer's chat template over few-shot turns."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; by default with the tokenizer's own BOS unless the text starts with it."""
        if add_special_tokens is None:
            return list(encode_prompt(self.tokenizer, Question(id="", prompt=string))) if string else []
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """(sum of log-probs of the continuation, would greedy decoding give it) of each request."""
        rows = []
        for texts, context, continuation in requests:
            if not context or len(continuation) >= self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens after a context of {len(context)} does not fit into "
                    f"{self.max_length}: {texts!r:.80}"
                )
            rows.append(([*context, *continuation][-self.max_length :], len(continuation)))
        graphdef, params = nnx.split(self.model)
        found: dict[int, tuple[float, bool]] = {}
        ways = batch_ways(mesh_of(self.model))
        for columns, most, part in groups([len(ids) for ids, _ in rows], _BUCKET, self.batch_size, ways):
            token_ids, mask = padded_rows([rows[i][0] for i in part], columns, most)
            logprob, top = (np.asarray(x) for x in _stats(graphdef, params, token_ids, mask))
            for place, i in enumerate(part):
                ids, scored = rows[i]
                span = slice(len(ids) - scored - 1, len(ids) - 1)
                greedy = bool((top[place, span] == ids[len(ids) - scored :]).all())
                found[i] = (float(logprob[place, span].astype(np.float64).sum()), greedy)
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
        return [found[i] for i in range(len(rows))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, in windows of the context's length."""
        windows: list[tuple[None, Sequence[int], Sequence[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Outputs up to a stop string, which is cut off; requests of equal settings are decoded together."""
        groups: dict[SampleConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._config(request.args[1]), []).append(number)
        outputs: dict[int, str] = {}
        for config, numbers in groups.items():
            room = self.max_length - config.max_new_tokens
            if room < 1:
                raise UserError(f"{config.max_new_tokens} new tokens leave no context in {self.max_length}")
            questions = []
            for number in numbers:
                ids = self.tok_encode(requests[number].args[0]) or [self.prefix_token_id]
                questions.append(Question(id=str(self._generations + number), prompt_ids=tuple(ids[-room:])))
            traces = generate(
                self.model, self.tokenizer, questions, config, self._key, batch_size=self.batch_size
            )
            for number, trace in zip(numbers, traces, strict=True):
                text = trace.text
                for stop in config.stop:
                    text = text.split(stop)[0]
                outputs[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        self._generations += len(requests)
        return [outputs[number] for number in range(len(requests))]

    def _config(self, given: Mapping[str, Any]) -> SampleConfig:
        """A task's generation settings as ours; one that would change the outputs and is not known is refused."""
        left = dict(given)
        until = left.pop("until", None) or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        lengths = [int(value) for name in _LENGTHS if (value := left.pop(name, None)) is not None]
        temperature = left.pop("temperature", None)
        do_sample = left.pop("do_sample", None)
        sampled = bool(temperature) if do_sample is None else bool(do_sample)
        filters = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        for name in filters:
            value = left.pop(name, None)
            if sampled and value is not None:
                filters[name] = value
        unknown = [name for name, value in left.items() if value is not None and _NEUTRAL.get(name) != value]
        if unknown:
            raise UserError(f"generation settings that are not supported: {', '.join(sorted(unknown))}")
        return SampleConfig(
            max_new_tokens=min(lengths[0] if lengths else self.max_gen_toks, self.max_length - 1),
            temperature=(1.0 if temperature is None else float(temperature)) if sampled else 0.0,
            stop=tuple(s for s in stop if s),
            top_k=int(filters["top_k"]),
            top_p=float(filters["top_p"]),
            min_p=float(filters["min_p"]),
        )
