"""Does the training step, or the tree search, compile for a TPU pod or GPUs, and does it fit? Needs neither.

    python -m experiments.compile_check --model_config=qwen3-8b --topology=v5e:4x4 --mesh=fsdp:16 --rows=16 --train.remat=full
    python -m experiments.compile_check --model_config=qwen2.5-7b --topology=v5e:2x4 --mesh=fsdp:8 --rows=8 --lora_rank=16
    python -m experiments.compile_check --model_config=qwen3-8b --topology=v5e:2x4 --mesh=tensor:8 --what=cat --num_branches=10
    python -m experiments.compile_check --model_config=qwen2.5-1.5b --topology=h200:1 --mesh=data:1 --what=cat --questions=16 --num_branches=1

The programs are the library's own, lowered from shapes alone and compiled ahead of time on a CPU machine, by libtpu
(in the clone: pip install ".[tpu]") or for a100, h100 and h200 by JAX's CUDA plugin (pip install ".[gpu]"; kernels are
then chosen without trying them). Printed: HBM a chip and whether it fits, products, HBM traffic, collectives, on GPUs
kernels and waits for the host, and the least time a run that the chip's published rates allow. --preset, --train.NAME and
--lora_rank are those of `experiments.train`, with its defaults. --model_config takes a Hugging Face config.json (or its
folder) or a shape: tiny, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, qwen3-8b, llama-3.1-8b.
"""

from __future__ import annotations

import dataclasses
import os

from absl import flags

from caspo_jax.errors import UserError
from experiments import common, result_files

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The program's flags."""
    from experiments.train import define_recipe_flags

    flags.DEFINE_string(
        "model_config", None, "a config.json, its folder, or the name of a shape", required=True
    )
    flags.DEFINE_string(
        "topology", None, "chips such as v5e:4x4, v5p:4x4x4, v6e:16x16 or h100:8", required=True
    )
    flags.DEFINE_string("mesh", None, "mesh of as many devices, such as fsdp:64,tensor:4", required=True)
    flags.DEFINE_enum(
        "what", "train", ["train", "cat"], "the program: a training update or the search's loop"
    )
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "compute dtype")
    flags.DEFINE_integer("rows", 16, "train: packed rows a batch", lower_bound=1)
    flags.DEFINE_integer("length", 2048, "train: tokens a row", lower_bound=16)
    flags.DEFINE_float("step_share", 1.0, "train: share of the tokens that the loss looks at", 0.0, 1.0)
    flags.DEFINE_bool(
        "accumulate",
        False,
        "train: an update has several micro-batches of --rows: compile the program that adds up the gradient of one",
    )
    flags.DEFINE_integer("questions", 8, "cat: questions together", lower_bound=1)
    flags.DEFINE_integer("num_branches", 10, "cat: slots K a question", lower_bound=1)
    flags.DEFINE_integer("prompt", 256, "cat: tokens of the longest prompt", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 4096, "cat: tokens a path", lower_bound=1)
    result_files.define_output_flags("also write the figures to this JSON file")
    flags.DEFINE_string("hlo", None, "also write the compiled program's text to this file")
    flags.DEFINE_enum("preset", "caspo", ["caspo", "paper"], "train: recipe that is compiled")
    common.define_terminal_flags()
    define_recipe_flags()


def main() -> None:
    """Check."""
    from caspo_jax import compile_check
    from caspo_jax.sharding import make_mesh
    from experiments.train import train_config

    common.check_outputs(("output", "hlo"), ("model_config",))
    config = compile_check.model_shape(FLAGS.model_config)
    recipe = train_config()
    if FLAGS.what == "cat" and recipe.lora is not None:
        raise UserError(
            "--lora_rank goes with --what=train: the check of the search is of a model without adapters"
        )
    chip, devices = compile_check.topology_devices(FLAGS.topology)
    mesh = make_mesh(FLAGS.mesh, devices)
    if mesh is None:
        raise UserError("--mesh is empty: give one of as many devices, such as fsdp:64,tensor:4")
    settings = result_files.flag_values() | {"train": dataclasses.asdict(recipe)}
    save, save_hlo = (result_files.claim(flag, "compile_check", settings) for flag in ("output", "hlo"))
    if FLAGS.what == "train":
        shape = compile_check.TrainShape(FLAGS.rows, FLAGS.length, FLAGS.step_share, FLAGS.accumulate)
        program = compile_check.train_program(config, mesh, shape, recipe, FLAGS.dtype)
        trained = "all weights" if recipe.lora is None else f"adapters of rank {recipe.lora.rank}"
        title = f"one {program.per} of {FLAGS.rows} rows of {FLAGS.length:,} tokens, {trained}, remat={recipe.remat}"
    else:
        search = compile_check.CatShape(
            FLAGS.questions, FLAGS.num_branches, FLAGS.prompt, FLAGS.max_new_tokens
        )
        program = compile_check.cat_program(config, mesh, search, FLAGS.dtype, chip)
        title = f"one token in each of {FLAGS.questions} x {FLAGS.num_branches} branches of {FLAGS.max_new_tokens:,}"
    result = compile_check.check(program, chip, len(devices))
    save(result.to_json())
    save_hlo(result.text)
    if FLAGS.log_json:
        common.closing(title, result.to_json())
    else:
        print(f"{FLAGS.model_config}, {title}, {FLAGS.topology}, {FLAGS.mesh}, {FLAGS.dtype}")
        print(compile_check.table(result))


if __name__ == "__main__":
    import jax

    # Chips that are here stay free: nothing is run.
    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
    define_flags()
    common.run(main, resumes=False)
