"""Compile time of the train step at two depths, in turns, each in a process of its own.

More than a few layers are a loop, so the time should hardly grow with the depth.

    python -m experiments.bench_compile
    python -m experiments.bench_compile --layers=4,64 --width=512 --output=compile.json

The step is `training.train_step.fused_update`, reverse pass and optimiser included, on rows of packed trees. Nothing of
it is run, so that any depth fits. Tracing, lowering and compiling are timed together, without a cache on disk.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from absl import flags

from caspo_jax.errors import UserError
from experiments import bench_flags, common, result_files
from experiments.bench_process import Worker, in_turns, machine, median_of, ratio_of, table

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    flags.DEFINE_list("layers", ["4", "36"], "two depths; the ratio is the second's time over the first's")
    flags.DEFINE_integer("vocab_size", 32_768, "vocabulary", lower_bound=32)
    flags.DEFINE_integer("width", 256, "hidden size, a multiple of 32", lower_bound=32)
    flags.DEFINE_integer("rows", 4, "rows a batch", lower_bound=1)
    flags.DEFINE_integer("length", 512, "tokens a row", lower_bound=32)
    bench_flags.define_run_flags(cycles=2)


def main() -> None:
    """Measure."""
    depths = [text for text in FLAGS.layers if text.isdecimal() and int(text) > 0]
    if len(depths) != len(FLAGS.layers) or len(set(depths)) != 2:
        raise UserError(f"--layers={','.join(FLAGS.layers)}: give two different numbers of layers")
    bench_flags.check_width()
    save = result_files.claim("output", "bench_compile")
    sizes = [str(x) for x in (FLAGS.vocab_size, FLAGS.width, FLAGS.rows, FLAGS.length)]

    def compiled(depth: str) -> dict[str, Any]:
        with Worker(sys.executable, "experiments.bench_compile_worker", [depth, *sizes]) as worker:
            return worker.ask(do="compile")

    with common.Progress(4 * FLAGS.cycles, "bench_compile", unit="program") as progress:
        runs = in_turns(
            {depth: functools.partial(compiled, depth) for depth in depths},
            FLAGS.cycles,
            progress.update,
        )
    rows = [
        [
            depth,
            f"{median_of(runs[depth], 'seconds'):.2f}",
            f"{median_of(runs[depth], 'temporaries') / 2**20:.0f}",
        ]
        for depth in depths
    ]
    common.say(table(["layers", "seconds", "temporaries MiB"], rows))
    ratio = ratio_of(runs[depths[0]], runs[depths[1]], "seconds")
    summary = {"ratio": f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"}
    save({"machine": machine(), "ratio": ratio, "runs": runs})
    common.closing(f"compile time, {depths[1]} layers over {depths[0]}", summary)


if __name__ == "__main__":
    define_flags()
    common.run(main, resumes=False)
