"""Flags that several programs have: of policies, decoding, questions, answers and searches."""

from __future__ import annotations

from absl import flags

from caspo_jax.confidence import STEP_CONFIDENCES
from caspo_jax.training.stages.annotate import TRACE_CONFIDENCES
from experiments import escapes
from experiments.terminal import define_terminal_flags


def define_model_flags(*, required: bool = True) -> None:
    """Flags of every program that loads a policy."""
    flags.DEFINE_string("model", None, "policy: a folder in Hugging Face layout (safetensors), or a hub id")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "compute dtype; default: the checkpoint's own")
    flags.DEFINE_string("mesh", None, "device mesh such as data:2,fsdp:2,tensor:2; default: one device")
    define_process_flags()
    define_seed_flag("seed of all random draws")
    flags.DEFINE_bool(
        "overwrite",
        False,
        "replace an output that was begun with other settings, or that this program did not write",
    )
    define_terminal_flags()
    if required:
        flags.mark_flag_as_required("model")


def define_seed_flag(help_text: str) -> None:
    """--seed, as many as JAX tells apart."""
    flags.DEFINE_integer("seed", 0, help_text, lower_bound=0, upper_bound=2**32 - 1)


def define_process_flags() -> None:
    """Flags of a run of several processes; on Cloud TPU, under SLURM and under Open MPI they are not needed."""
    flags.DEFINE_string(
        "coordinator_address", None, "several processes (docs/scaling.md): host:port of process 0"
    )
    flags.DEFINE_integer("num_processes", None, "several processes: how many", lower_bound=1)
    flags.DEFINE_integer(
        "process_id", None, "several processes: which of them this is, from 0", lower_bound=0
    )


def define_decoding_flags(*, num_samples: int = 1, temperature: float = 1.0) -> None:
    """Flags of every program that decodes."""
    flags.DEFINE_integer(
        "batch_size",
        None,
        "rows (questions x samples or branches) decoded together; default: by memory",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "max_new_tokens",
        None,
        "longest output, in tokens; default: what the prompt leaves of the context, 1024 at most",
        lower_bound=1,
    )
    flags.DEFINE_float("temperature", temperature, "sampling temperature; 0 is greedy")
    flags.DEFINE_float("top_p", 1.0, "nucleus mass; 1 is off")
    flags.DEFINE_integer("top_k", 0, "most probable tokens kept; 0 is off")
    flags.DEFINE_float("min_p", 0.0, "least probability, as a share of the most probable token's; 0 is off")
    flags.DEFINE_integer("num_samples", num_samples, "outputs for each question", lower_bound=1)
    flags.DEFINE_bool("ignore_eos", False, "go on after end-of-sequence, up to --max_new_tokens")
    define_delimiter_flag()
    flags.DEFINE_multi_string("stop", [], f"end an output after this string (repeatable); {escapes.HELP}")


def define_delimiter_flag(what: str = "a step") -> None:
    """--step_delimiter; `what` says what it ends."""
    flags.DEFINE_string(
        "step_delimiter",
        None,
        rf"what ends {what} ({escapes.HELP}); default: the policy's caspo.json, else \n\n",
    )


def define_question_flags() -> None:
    """Flags of every program that reads questions."""
    flags.DEFINE_string(
        "question_field",
        None,
        "field of the question, if it is none of question, problem, instruction; a `prompt` in the same record is ignored",
    )
    flags.DEFINE_string("gold_field", None, "field of the gold answer, if it is neither gold nor answer")
    flags.DEFINE_string(
        "instruction",
        None,
        "text that is appended to each question of the input on a line of its own; `boxed` stands for the sentence with which "
        f"the benchmarks ask for mathematics (step by step, the answer in a box); {escapes.HELP}. A `prompt` or `prompt_ids` "
        "stays as it is",
    )


def define_answer_flags() -> None:
    """Flags of every program that reads answers out of text."""
    flags.DEFINE_enum(
        "answers",
        None,
        ["math", "integer", "letter", "yes_no", "string"],
        "kind of the answers; default: the embedded task's own for its tiny policy, else math",
    )


def define_confidence_flag(what: str) -> None:
    """--confidence of programs that compute it from traces; `what` says what it is for."""
    flags.DEFINE_string(
        "confidence",
        None,
        f"step confidence {what}: {', '.join(TRACE_CONFIDENCES)}; default: the policy's caspo.json, else entropy",
    )


CAT_FLAGS = (
    "num_branches",
    "root_branches",
    "threshold",
    "expand",
    "num_answers",
    "min_live",
    "token_budget",
    "confidence",
    "path_confidence",
    "prune",
    "vote",
    "gamma",
    "stop_decided",
)


def define_cat_flags() -> None:
    """Flags of every program that searches a tree; `CAT_FLAGS` names them."""
    flags.DEFINE_integer(
        "num_branches", 8, "search: branches K of a question that are decoded at once", lower_bound=1
    )
    flags.DEFINE_integer("root_branches", None, "search: branches to start with; default: K", lower_bound=1)
    flags.DEFINE_float(
        "threshold",
        None,
        "search: prune strictly below this confidence; default: the policy's caspo.json, else never",
    )
    flags.DEFINE_integer(
        "expand", 2, "search: most children a node, the original included; 1 never forks", lower_bound=1
    )
    flags.DEFINE_integer(
        "num_answers", None, "search: finished paths that end a question; default: K", lower_bound=1
    )
    flags.DEFINE_integer("min_live", 1, "search: pruning never leaves fewer live branches", lower_bound=0)
    flags.DEFINE_integer(
        "token_budget",
        None,
        "search: most tokens a question, over all branches; default: no limit",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "confidence",
        None,
        f"search: step confidence: {', '.join(STEP_CONFIDENCES)}; default: the policy's caspo.json, else mean_logprob",
    )
    flags.DEFINE_string(
        "path_confidence",
        "geometric",
        "search: a path's confidence, of its steps': geometric, product, min or last",
    )
    flags.DEFINE_string(
        "prune", "last", "search: what is compared with the threshold: path, last or relative"
    )
    flags.DEFINE_string(
        "vote", "sequence", "search: what decides the answer: majority, confidence, sequence or best_path"
    )
    flags.DEFINE_float("gamma", 1.0, "search: exponent of the confidence vote")
    flags.DEFINE_bool("stop_decided", False, "search: end a question once nothing can change its answer")
