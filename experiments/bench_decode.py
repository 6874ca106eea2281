"""Decoding: tokens a second, memory and share of the roofline, beside transformers or tunix; CaT beside plain sampling.

    python -m experiments.bench_decode
    python -m experiments.bench_decode --peer=transformers --peer_python=VENV/bin/python --output=decode.json
    python -m experiments.bench_decode --peer=tunix --peer_python=VENV/bin/python --cases=greedy,top_p
    python -m experiments.bench_decode --peer=checkout --peer_checkout=FOLDER --cases=greedy
    python -m experiments.bench_decode --shape=qwen2.5-1.5b --dtype=bfloat16 --batch_size=16 --peer=transformers --peer_compile

A run is a whole call: prompts as ids in, outputs of one fixed length out (ours with the log-prob, entropy and
steps of every token). Both sides have the same random weights, stay alive in processes of their own and run in turns (A B B A) after a
warm-up in which a peer tries its settings and keeps the fastest.

Our own cases run in turns too, each against greedy. `cat` is a search of --branches branches over one prompt that prunes
and forks to its last token; `plain` is as many samples of that prompt. The last figure is how many of the steps of all slots
had a live branch, where outputs end early and late (--skewed_questions).
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from caspo_jax.errors import UserError
from experiments import bench_flags, bench_model, common, result_files
from experiments.bench_process import Worker, in_turns, machine, median_of, ratio_of, table

FLAGS = flags.FLAGS
PEERS = {peer: f"experiments.bench_decode_{peer}" for peer in ("transformers", "tunix")}
MODULES = dict.fromkeys(bench_flags.OURS, "experiments.bench_decode_ours") | PEERS
CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "sample": {"temperature": 1.0},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "top_k": {"temperature": 1.0, "top_k": 50},
    "min_p": {"temperature": 1.0, "min_p": 0.05},
}
UNKNOWN_TO = {"tunix": ("min_p",)}
Runs = dict[str, list[dict[str, Any]]]


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_list("cases", list(CASES), f"some of {','.join(CASES)}; greedy is always run")
    flags.DEFINE_integer("batch_size", 8, "prompts decoded together", lower_bound=1)
    flags.DEFINE_integer("prompt_length", 64, "tokens of a prompt", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 128, "tokens of an output", lower_bound=2)
    flags.DEFINE_integer("branches", 10, "branches of the search, samples beside it", lower_bound=2)
    flags.DEFINE_integer(
        "skewed_questions",
        64,
        "prompts with outputs of skewed lengths, a few each; 0: leave out",
        lower_bound=0,
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "dtype of weights and cache")
    bench_flags.define_peer_flags(PEERS)
    flags.DEFINE_bool("peer_compile", False, "transformers may also try torch.compile over a static cache")
    flags.DEFINE_bool("peer_only", False, "leave out what concerns caspo_jax alone")
    flags.DEFINE_integer("seed", 0, "seed of weights and prompts", lower_bound=0)
    bench_flags.define_shape_flags(width=256, layers=4)
    bench_flags.define_run_flags()


def chosen_cases() -> list[str]:
    """Those of --cases, greedy first."""
    unknown = [name for name in FLAGS.cases if name not in CASES]
    if unknown:
        raise UserError(f"--cases={','.join(FLAGS.cases)}: choose some of {', '.join(CASES)}")
    return [name for name in CASES if name == "greedy" or name in FLAGS.cases]


def settings_to_try() -> list[dict[str, Any]]:
    """What a peer's warm-up chooses from."""
    if FLAGS.peer != "transformers":
        return [{}]
    tries = [{"attention": a, "static": False, "compiled": False} for a in ("sdpa", "eager")]
    if FLAGS.peer_compile:
        tries.append({"attention": "sdpa", "static": True, "compiled": True})
    return tries


def step_work(
    shape: bench_model.Shape, size: int, rows: int, prompt_length: int, new_tokens: int
) -> tuple[float, float]:
    """Bytes that a token step of `rows` rows must read, and its operations, at the mean length of a row.

    Weights (`size` bytes each) are read once, the head among them; the rows' keys and values as far as they reach.
    A product with a matrix of n entries is 2 n operations a row; attention 4 H D a layer for every key.
    """
    entries = shape.layer_parameters + shape.vocab_size * shape.hidden_size
    keys = prompt_length + (new_tokens + 1) / 2
    cached = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    read = size * (entries + rows * keys * cached)
    return read, rows * (2 * entries + 4 * shape.num_layers * shape.num_heads * shape.head_dim * keys)


def given_step_work(shape: bench_model.Shape) -> tuple[float, float]:
    """`step_work` of the flags."""
    size = 4 if FLAGS.dtype == "float32" else 2
    return step_work(shape, size, FLAGS.batch_size, FLAGS.prompt_length, FLAGS.new_tokens)


def main() -> None:
    """Measure."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two sides share an accelerator
    shape, cases = bench_flags.given_shape(), chosen_cases()
    sides = bench_flags.given_sides(MODULES)
    save = result_files.claim("output", "bench_decode")
    rng = np.random.default_rng(FLAGS.seed)
    prompts = rng.integers(16, shape.vocab_size, (FLAGS.batch_size, FLAGS.prompt_length)).tolist()
    with tempfile.TemporaryDirectory() as temporary:
        folder = bench_model.make_checkpoint(shape, Path(temporary) / "model", FLAGS.dtype, FLAGS.seed)
        job = Path(temporary) / "job.json"
        contents = {"model": str(folder), "dtype": FLAGS.dtype, "prompts": prompts}
        contents |= {"new_tokens": FLAGS.new_tokens, "branches": FLAGS.branches}
        job.write_text(json.dumps(contents), encoding="utf-8")
        workers: dict[str, Worker] = {}
        try:
            for name, start in sides.items():
                workers[name] = start([str(job)])
            ours = workers["caspo_jax"]
            about = {name: worker.ask(do="ready") for name, worker in workers.items()}
            results: dict[str, Runs] = {}
            if FLAGS.peer != "none":
                results = {name: beside_peer(name, workers) for name in cases if supported(name)}
            own = {} if FLAGS.peer_only else own_figures(ours, cases)
            rates = ours.ask(do="rates", read=round(given_step_work(shape)[0]))
        finally:
            for worker in workers.values():
                worker.close()
    read, operations = given_step_work(shape)
    step = {"bytes": read, "operations": operations}
    summary = report(step, results, own, rates)
    save(
        {
            "shape": dataclasses.asdict(shape),
            "dtype": FLAGS.dtype,
            "rows": FLAGS.batch_size,
            "prompt_length": FLAGS.prompt_length,
            "new_tokens": FLAGS.new_tokens,
            "machine": machine(),
            "sides": about,
            "rates": rates,
            "step": step,
            "summary": summary,
            "beside_peer": results,
            "own": own,
        }
    )
    common.closing(f"decoding on {about['caspo_jax']['device']}, {FLAGS.dtype}", summary)


def supported(case: str) -> bool:
    """Whether the peer can do it."""
    return case not in UNKNOWN_TO.get(FLAGS.peer, ())


def run_once(worker: Worker, case: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One run of a side.

    Raises:
      UserError: it did not write as many tokens as asked for, so its time means nothing.
    """
    answer = worker.ask(do="run", sampling=CASES[case], settings=settings)
    _demand(answer["tokens"] == FLAGS.batch_size * FLAGS.new_tokens, f"{worker.name}, {case}: {answer}")
    return answer


def _demand(ok: bool, what: str) -> None:
    if not ok:
        raise UserError(f"not a measurement: {what}")


def beside_peer(case: str, workers: dict[str, Worker]) -> Runs:
    """The peer's fastest settings, then both in turns."""
    chosen: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        tries = [{}] if name == "caspo_jax" else settings_to_try()
        seconds = []
        for settings in tries:
            runs = [run_once(worker, case, settings) for _ in range(3)]  # the first compiles
            seconds.append(min(run["seconds"] for run in runs[1:]))
        chosen[name] = tries[seconds.index(min(seconds))]
    sides = {
        name: (lambda name=name: run_once(workers[name], case, chosen[name]) | {"settings": chosen[name]})
        for name in workers
    }
    return turns(sides, f"{case} beside {FLAGS.peer}")


def turns(sides: dict[str, Any], label: str) -> Runs:
    """All sides in turns, with a progress bar."""
    with common.Progress(2 * FLAGS.cycles * len(sides), label, unit="run") as progress:
        return in_turns(sides, FLAGS.cycles, progress.update)


def own_figures(ours: Worker, cases: list[str]) -> dict[str, Any]:
    """What concerns caspo_jax alone: its cases in turns, CaT beside plain sampling, slots on a skewed set, temporaries."""

    def tree(kind: str) -> dict[str, Any]:
        answer = ours.ask(do=kind)
        cut = kind == "cat" and not (answer["pruned"] and answer["forks"])
        _demand(answer["steps"] == FLAGS.new_tokens and not cut, f"{kind}: {answer}")
        return answer

    sides = {name: (lambda name=name: run_once(ours, name, {})) for name in cases}
    trees = {kind: (lambda kind=kind: tree(kind)) for kind in ("plain", "cat")}
    for run in (*sides.values(), *trees.values()):
        run()  # compiles
    found: dict[str, Any] = {
        "cases": turns(sides, "cases"),
        "trees": turns(trees, "CaT beside plain sampling"),
    }
    found["temporaries"] = ours.ask(do="temporaries")
    if FLAGS.skewed_questions:
        found["skewed"] = ours.ask(do="skewed", questions=FLAGS.skewed_questions)
    return found


def report(
    step: dict[str, float], results: dict[str, Runs], own: dict[str, Any], rates: dict[str, float]
) -> dict[str, Any]:
    """Prints the table; returns the closing summary."""
    read, operations = step["bytes"], step["operations"]
    least = max(read / rates["copy"], operations / rates["matmul"])
    rows: list[list[str]] = []
    summary: dict[str, Any] = {}

    def row(case: str, side: str, runs: list[dict[str, Any]], steps: int = FLAGS.new_tokens) -> None:
        seconds = median_of(runs, "seconds")
        cells = [case, side, f"{median_of(runs, 'tokens') / seconds:,.0f}", f"{1e3 * seconds / steps:.2f}"]
        share = "" if case in ("plain", "cat") else f"{least * steps / seconds:.0%}"
        rows.append([*cells, share, f"{median_of(runs, 'peak') / 2**30:.2f}"])

    def ratio(label: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
        found = ratio_of(first, second, "seconds")
        summary[label] = f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"

    for case, runs in results.items():
        for side, measured in runs.items():
            row(case, side, measured)
        ratio(f"{case}: their seconds over ours", runs["caspo_jax"], runs[FLAGS.peer])
    for case, measured in own.get("cases", {}).items():
        row(f"{case}, own turns", "caspo_jax", measured)
        if case != "greedy":
            ratio(f"{case}: speed against own greedy", measured, own["cases"]["greedy"])
    if own:
        for kind, measured in own["trees"].items():
            row(kind, f"caspo_jax, {FLAGS.branches} rows", measured)
        ratio("CaT: seconds a token step over plain sampling's", own["trees"]["plain"], own["trees"]["cat"])
        last, size = own["trees"]["cat"][-1], own["temporaries"]
        summary["CaT: nodes pruned, forks made"] = f"{last['pruned']}, {last['forks']}"
        summary["CaT: temporaries beyond plain sampling's, share of the KV cache"] = (
            f"{(size['cat'] - size['plain']) / size['cache']:.1%} of {size['cache'] / 2**20:.1f} MiB"
        )
    if "skewed" in own:
        found = own["skewed"]
        summary["skewed lengths: live slot steps"] = (
            f"{found['live_slot_steps'] / found['slot_steps']:.1%} of {found['slot_steps']} (mean length "
            f"{found['mean_length']:.0f}, longest {found['longest']}; {found['tokens'] / found['seconds']:,.0f} tokens/s)"
        )
    common.say(table(["case", "side", "tokens/s", "ms a step", "of roofline", "peak GiB"], rows))
    summary["a step's bytes, operations"] = f"{read / 1e6:.1f} MB, {operations / 1e9:.2f} GFLOP"
    summary["measured: copy, matmul"] = (
        f"{rates['copy'] / 1e9:.1f} GB/s (of as many bytes), {rates['matmul'] / 1e9:,.0f} GFLOP/s"
    )
    return summary


if __name__ == "__main__":
    define_flags()
    common.run(main, resumes=False)
