"""Training on preference pairs: pairs and tokens a second, memory and share of the matmul rate, beside TRL or tunix.

    python -m experiments.bench_train
    python -m experiments.bench_train --peer=trl --peer_python=TRL_VENV/bin/python --output=bench_train.json
    python -m experiments.bench_train --peer=tunix --peer_python=TUNIX_VENV/bin/python --workloads=steps
    python -m experiments.bench_train --peer=checkout --peer_checkout=FOLDER
    python -m experiments.bench_train --peer=torch --peer_python=TORCH_VENV/bin/python --shape=qwen2.5-1.5b --dtype=bfloat16

A run is one epoch of DPO from the same random checkpoint, reference log-probs included; both sides stay alive
in processes of their own and run in turns (A B B A), after a warm-up in which each tries its micro-batch sizes, the
best ones several times, and keeps the fastest. The warm-up has processes of its own: a peak of memory is that of the
settings that were chosen. Workloads: `pairs`, whole responses that share each its own prompt; `uneven`, the same with responses of a
sixth of that length and more; `steps`, a pair at every step of a trace; `questions`, pairs at two steps of each of eight
traces a question, whose lengths differ. Tokens are those of the rows without sharing, so that both sides are measured
by the same work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from experiments import bench_flags, bench_model, common, result_files
from experiments.bench_process import Worker, in_turns, machine, median_of, ratio_of, table

FLAGS = flags.FLAGS
# The first run of settings compiles, so many measure; those up to so many times the least are tried so often again.
MEASURED, NEAR, AGAIN = 2, 1.25, 2
PEERS = {peer: f"experiments.bench_train_{peer}" for peer in ("trl", "tunix", "torch")}
MODULES = dict.fromkeys(bench_flags.OURS, "experiments.bench_train_ours") | PEERS


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_list("workloads", ["pairs", "steps"], "some of pairs,uneven,steps,questions")
    flags.DEFINE_integer("pairs", 32, "unrelated pairs a run of `pairs` or `uneven`", lower_bound=1)
    flags.DEFINE_integer("prompt_length", 64, "tokens of a prompt", lower_bound=1)
    flags.DEFINE_integer(
        "response_length", 192, "tokens of a response of `pairs`, of the longest of `uneven`", lower_bound=1
    )
    flags.DEFINE_integer("traces", 2, "traces a run of `steps`", lower_bound=1)
    flags.DEFINE_integer("questions", 8, "questions a run of `questions`, two an update", lower_bound=1)
    flags.DEFINE_integer("steps", 16, "steps a trace, of `questions` the longest", lower_bound=1)
    flags.DEFINE_integer("step_length", 20, "tokens a step", lower_bound=1)
    flags.DEFINE_integer(
        "batch_size", 8, "pairs an update of `pairs` and `uneven` (`steps`: a trace an update)", lower_bound=1
    )
    bench_flags.define_peer_flags(PEERS)
    flags.DEFINE_integer("seed", 0, "seed of weights and tokens", lower_bound=0)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and products, on both sides")
    flags.DEFINE_integer("lora_rank", 0, "train adapters of this rank alone; 0: all weights", lower_bound=0)
    flags.DEFINE_bool("remat", False, "recompute each layer in the backward pass, on both sides")
    bench_flags.define_shape_flags(width=256, layers=4)
    bench_flags.define_run_flags()


def workloads() -> list[bench_model.Workload]:
    """Those of --workloads."""
    whole = functools.partial(
        bench_model.unrelated_pairs,
        FLAGS.pairs,
        FLAGS.vocab_size,
        FLAGS.prompt_length,
        FLAGS.response_length,
        FLAGS.batch_size,
        FLAGS.seed,
    )
    of_steps = (FLAGS.vocab_size, FLAGS.prompt_length, FLAGS.steps, FLAGS.step_length, FLAGS.seed)
    made = {
        "pairs": whole,
        "uneven": functools.partial(whole, uneven=True),
        "steps": functools.partial(bench_model.step_pairs, FLAGS.traces, *of_steps),
        "questions": functools.partial(bench_model.question_pairs, FLAGS.questions, *of_steps),
    }
    unknown = [name for name in FLAGS.workloads if name not in made]
    if unknown or not FLAGS.workloads:
        raise UserError(f"--workloads={','.join(FLAGS.workloads)}: choose some of {', '.join(made)}")
    return [made[name]() for name in FLAGS.workloads]


def settings_to_try(side: str, workload: bench_model.Workload, platform: str) -> list[dict[str, Any]]:
    """What the warm-up chooses from: for caspo_jax the length of rows and remat, for a peer pairs a micro-batch.

    An accelerator (`platform`) takes eight rows at once, a CPU 2,048 tokens.
    """
    if side in bench_flags.OURS:
        less = "full" if platform == "cpu" else "dots"
        remats = ("full",) if FLAGS.remat else ("none", less)
        return [
            {"pack_length": length, "pack_rows": 2048 // length if platform == "cpu" else 8, "remat": remat}
            for length in (512, 1024)
            for remat in remats
        ]
    sizes = [micro for micro in (2, 4, 8, 16) if workload.batch_size % micro == 0]
    return [{"micro": micro} for micro in sizes or [workload.batch_size]]


def main() -> None:
    """Measure."""
    shape, loads = bench_flags.given_shape(), workloads()
    sides = bench_flags.given_sides(MODULES)
    save = result_files.claim("output", "bench_train")
    with tempfile.TemporaryDirectory() as temporary:
        folder = bench_model.make_checkpoint(shape, Path(temporary) / "model", FLAGS.dtype, FLAGS.seed)
        job = Path(temporary) / "job.json"
        contents = {
            "model": str(folder),
            "workloads": {w.name: dataclasses.asdict(w) for w in loads},
            **{name: FLAGS[name].value for name in ("dtype", "lora_rank", "remat")},
        }
        job.write_text(json.dumps(contents), encoding="utf-8")
        start = {name: functools.partial(side, [str(job)]) for name, side in sides.items()}
        results = {w.name: measure(w, start) for w in loads}
    rate = max(result["matmul_flops"] for result in results.values())
    summary = report(shape, loads, results, rate)
    save(
        {
            "shape": dataclasses.asdict(shape),
            **{name: FLAGS[name].value for name in ("dtype", "lora_rank", "remat")},
            "machine": machine() | {"matmul_flops": rate},
            "versions": next(iter(results.values()))["versions"],
            "workloads": {w.name: {"pairs": len(w.pairs), "row_tokens": w.row_tokens} for w in loads},
            "summary": summary,
            "results": results,
        }
    )
    summary[f"{FLAGS.dtype} matmul, GFLOP/s"] = round(rate / 1e9, 1)
    common.closing("training (speed: their seconds over ours; memory: ours over theirs)", summary)


def run_once(worker: Worker, workload: bench_model.Workload, settings: dict[str, Any]) -> dict[str, Any]:
    """One run of a side.

    Raises:
      UserError: it did not make the updates that the workload asks for, so its time means nothing.
    """
    answer = worker.ask(do="run", workload=workload.name, settings=settings)
    wanted = -(-len(workload.pairs) // workload.batch_size)
    if answer["updates"] != wanted:
        raise UserError(
            f"{worker.name}: {answer['updates']} updates of {workload.name!r} instead of {wanted}: not a measurement"
        )
    return answer


def measure(workload: bench_model.Workload, start: Mapping[str, Callable[[], Worker]]) -> dict[str, Any]:
    """The warm-up's choice and all runs of one workload, by side."""
    chosen = {}
    with started(start) as workers, common.Progress(0, f"{workload.name} warm-up", unit="run") as progress:
        # Of every side: a peer that cannot start says so here.
        about = {name: worker.ask(do="ready") for name, worker in workers.items()}
        platform = about["caspo_jax"]["platform"]
        tries = {name: settings_to_try(name, workload, platform) for name in workers}
        progress.reach(0, (1 + MEASURED + AGAIN) * sum(map(len, tries.values())))  # at most
        for name, worker in workers.items():

            def seconds(settings: dict[str, Any], worker: Worker = worker) -> float:
                progress.update()
                return run_once(worker, workload, settings)["seconds"]

            chosen[name] = fastest(tries[name], seconds)
    with started(start) as workers:
        sides = {
            name: functools.partial(run_once, worker, workload, chosen[name])
            for name, worker in workers.items()
        }
        with common.Progress(2 * (1 + FLAGS.cycles) * len(sides), workload.name, unit="run") as progress:
            for side in (*sides.values(), *sides.values()):  # the first of each compiles
                side()
                progress.update()
            runs = in_turns(sides, FLAGS.cycles, progress.update)
        return {
            "settings": chosen,
            "runs": runs,
            "matmul_flops": workers["caspo_jax"].ask(do="matmul")["rate"],
            "versions": {name: worker.ask(do="ready")["versions"] for name, worker in workers.items()},
        }


@contextlib.contextmanager
def started(start: Mapping[str, Callable[[], Worker]]) -> Iterator[dict[str, Worker]]:
    """Fresh processes of all sides, ended afterwards."""
    with contextlib.ExitStack() as running:
        yield {name: running.enter_context(worker()) for name, worker in start.items()}


def fastest(tries: list[dict[str, Any]], seconds: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """The settings that take least, by the best of their runs: the first after the compilation still asks for memory."""
    best = []
    for settings in tries:
        seconds(settings)
        best.append(min(seconds(settings) for _ in range(MEASURED)))
    near = [i for i, time in enumerate(best) if time <= NEAR * min(best)]
    for _ in range(AGAIN if len(near) > 1 else 0):
        for i in near:
            best[i] = min(best[i], seconds(tries[i]))
    return tries[best.index(min(best))]


def report(
    shape: bench_model.Shape, loads: list[bench_model.Workload], results: dict[str, Any], rate: float
) -> dict[str, Any]:
    """Prints the table; returns the closing summary. `rate` is the machine's, in operations a second."""
    rows: list[list[str]] = []
    summary: dict[str, Any] = {}
    for workload in loads:
        runs, flops = (
            results[workload.name]["runs"],
            bench_model.useful_flops(shape, workload, lora=FLAGS.lora_rank > 0),
        )
        for name, measured in runs.items():
            seconds = median_of(measured, "seconds")
            rows.append(
                [
                    workload.name,
                    name,
                    f"{len(workload.pairs) / seconds:.3g}",
                    f"{workload.row_tokens / seconds:,.0f}",
                    f"{flops / seconds / rate:.0%}",
                    f"{median_of(measured, 'peak') / 2**30:.2f}",
                    f"{measured[0]['first_loss'] or float('nan'):.4f}",
                ]
            )
            if name != "caspo_jax":
                ratio = ratio_of(runs["caspo_jax"], measured, "seconds")
                memory = median_of(runs["caspo_jax"], "peak") / median_of(measured, "peak")
                summary[f"{workload.name}: speed against {name}"] = (
                    f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
                )
                summary[f"{workload.name}: peak memory against {name}"] = f"{memory:.2f}"
    columns = ["workload", "side", "pairs/s", "row tokens/s", "of matmul rate", "peak GiB", "first loss"]
    common.say(table(columns, rows))
    return summary


if __name__ == "__main__":
    define_flags()
    common.run(main, resumes=False)
