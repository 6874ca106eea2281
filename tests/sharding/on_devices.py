"""Runs in a process of its own with eight CPU devices: `python on_devices.py JOB FOLDER MESH ...`.

JOB is `trees` or `rows` (three updates), `search` or `search_apart` (a CaT search, with layers apart, and
a row that is measured), `compile` (an update's program), `decode` (that of a token in 24 rows) or `load` (bytes that a checkpoint's parts take); what a mesh (a
flag, or `none`) gives is written to FOLDER/MESH.npz.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.confidence.forced import StepRow, measure
from caspo_jax.models import Decoder, load_pretrained, save_pretrained
from caspo_jax.models.checkpoint import Checkpoint, read_parameter
from caspo_jax.models.weights import owner, parameter_sharding, weights
from caspo_jax.sampling import CatConfig, SampleConfig, cat_search, generate, model_decode
from caspo_jax.sharding import batch_ways, make_mesh, place
from caspo_jax.tasks import get_task
from caspo_jax.training import LossConfig, TrainConfig, train
from caspo_jax.training.data import RowStore
from caspo_jax.training.make_plan import make_plan
from caspo_jax.training.step_loss import loss_denominators
from caspo_jax.training.train_step import add_gradients, fused_update, make_train_step
from caspo_jax.types import Pair, Question
from tests.shapes import small_shape

# Without DPO-Positive: its kink lies at a log-ratio of 0, where training starts, and the last bit decides on its side.
LOSS = LossConfig(nll_alpha=0.5, nll_on="verified", label_smoothing=0.1)
# A large eps: where a gradient is rounding noise, Adam would turn its sign into a whole step.
SETTINGS = dict(loss=LOSS, learning_rate=1e-2, eps=1e-3, max_steps=3, epochs=3, tensorboard=False)


SMALL = small_shape(
    hidden_size=32,
    intermediate_size=64,
    num_heads=8,
    num_kv_heads=2,  # fewer than tensor:4 asks for
    initializer_range=0.2,
    tie_word_embeddings=False,
)


def small_decoder(mesh, **changes):
    return Decoder(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0), mesh=mesh)


def preferences(count=10, vocab=64):
    """Pairs and verified rows of four questions, which share beginnings."""
    rng = np.random.default_rng(0)

    def words(low, high):
        return tuple(int(i) for i in rng.integers(0, vocab, rng.integers(low, high)))

    prompts = [words(2, 6) for _ in range(4)]
    pairs = [
        Pair(
            id=str(i),
            kind="wrong",
            prompt="",
            prefix="",
            chosen="",
            rejected="",
            prompt_ids=prompts[i % 4],
            prefix_ids=words(0, 5),
            chosen_ids=words(1, 6),
            rejected_ids=words(1, 6),
            ends_trace=(False, False),
            weight=float(rng.uniform(0.5, 2)),
        )
        for i in range(count)
    ]
    return pairs, [(prompts[i % 4], words(1, 8)) for i in range(6)]


PACKING = {"trees": dict(pack_rows=8), "rows": dict(micro_batch_size=4)}  # one micro-batch, and two


def run_training(pack, mesh):
    pairs, verified = preferences()
    config = TrainConfig(pack=pack, batch_size=7, **PACKING[pack], **SETTINGS)
    programs = (fused_update, add_gradients)
    for program in programs:
        program.clear_cache()
    model, summary = train(small_decoder(mesh), pairs, config, verified=verified)
    arrays = {
        name: np.array([record[name] for record in summary.history])
        for name in ("loss", "grad_norm", "displacement", "step_tokens")
    }
    arrays["programs"] = np.array([program._cache_size() for program in programs])
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        arrays[".".join(map(str, path))] = np.asarray(leaf[...])
    return arrays


def run_search(mesh, apart=False):
    model_decode.prefers_apart = lambda params: apart
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path, dtype="float32", mesh=mesh)
    config = CatConfig(
        num_branches=4,
        root_branches=3,
        threshold=0.7,
        step_confidence="mean_logprob",
        sample=SampleConfig(max_new_tokens=48, temperature=1.0, top_p=0.98),
    )
    questions = list(task.questions("train", 5, seed=3))
    results = cat_search(model, tokenizer, questions, config, jax.random.key(0))
    # One row, which no number of devices divides, and a vocabulary that XLA looks for the largest of in a way of its own.
    row = StepRow((1, 2, 3), tuple(range(12)), (0, 2, 12))
    small = small_decoder(None if mesh is None else make_mesh("tensor:-1"), vocab_size=512)
    measured = measure(small, [row])
    sampling = SampleConfig(max_new_tokens=6, top_k=5)
    (drawn,) = generate(small, None, [Question("q", prompt_ids=(1, 2, 3))], sampling, jax.random.key(0))
    return {
        "drawn": np.array(drawn.logprob),
        "measured": np.concatenate([x for found in measured for x in (*found.stats.values(), found.q)]),
        "trees": json.dumps(
            [[(n.parent, n.token_ids, n.status, n.reason) for n in r.tree.nodes] for r in results]
        ),
        "logprob": np.array([x for r in results for n in r.tree.nodes for x in n.logprob]),
        "confidence": np.array(
            [n.confidence for r in results for n in r.tree.nodes if n.confidence is not None]
        ),
        "answers": json.dumps([r.answer for r in results]),
    }


# Sizes of a decoder that appear nowhere else in an update's program.
SIZES = dict(
    num_layers=24, hidden_size=64, intermediate_size=176, num_heads=14, num_kv_heads=2, vocab_size=1000
)


def run_compile(mesh, remat="full"):
    """The optimised program of one device, and what memory it takes."""
    model = small_decoder(mesh, **SIZES)
    pairs, verified = preferences(8)
    config = TrainConfig(pack="rows", batch_size=8, remat=remat, **SETTINGS)
    store = RowStore.build(pairs, verified)
    plan = make_plan(store, config, batch_ways(mesh))
    (micro,) = plan.micro(*plan.rows_of(0))
    step, state = make_train_step(model, config, 3)
    totals = loss_denominators(micro.batch, config.loss)
    program = fused_update.lower(
        step.spec, state, step.frozen, place(mesh, micro.batch), totals, np.float32(1), np.uint32(0)
    )
    compiled = program.compile()
    memory = compiled.memory_analysis()
    return {
        "hlo": compiled.as_text(),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)) * 4,
    }


def run_decode(mesh):
    """The optimised program of one device that reads a token in every row and says what may come next."""
    graphdef, params = nnx.split(small_decoder(mesh, **SIZES))
    ids = jnp.ones((24, 8), jnp.int32)
    _, cache = nnx.merge(graphdef, params).prefill(ids, ids > 0, 8)
    step = jax.jit(lambda params, *given: nnx.merge(graphdef, params).decode_step(*given))
    return {"hlo": step.lower(params, cache, ids[:, 0], ids[:, 0], jnp.int32(0)).compile().as_text()}


def run_load(mesh):
    """Bytes that a process with one device of the mesh would read, and bytes that this one with all of them reads."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(small_decoder(None), None, folder)
        with Checkpoint(Path(folder)) as whole:
            read_all = [read_parameter(whole, w, SMALL, np.float32) for w in weights(SMALL)]
            everything = whole.bytes_read
        shares, wanted = [], []
        for device in mesh.devices.flat:
            with Checkpoint(Path(folder)) as checkpoint:
                parts = []
                for weight, full in zip(weights(SMALL), read_all, strict=True):
                    sharding = parameter_sharding(mesh, weight, SMALL)
                    index = sharding.devices_indices_map(full.shape)[device]
                    parts.append(read_parameter(checkpoint, weight, SMALL, np.float32, index))
                    np.testing.assert_array_equal(parts[-1], full[index])
                shares.append(checkpoint.bytes_read)
                wanted.append(sum(part.nbytes for part in parts))
        messages: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logging.getLogger("caspo_jax").addHandler(handler)
        logging.getLogger("caspo_jax").setLevel(logging.INFO)
        model, _ = load_pretrained(folder, mesh=mesh)
        (said,) = (int(m.split(" read ")[1].split()[0]) for m in messages if " read " in m)
        for weight, full in zip(weights(SMALL), read_all, strict=True):
            array = getattr(owner(model, weight), weight.name)[...]
            np.testing.assert_array_equal(array, full)
            assert array.sharding == parameter_sharding(mesh, weight, SMALL)
        replicated = sum(
            full.nbytes
            for weight, full in zip(weights(SMALL), read_all)
            if parameter_sharding(mesh, weight, SMALL).is_fully_replicated
        )
        save_pretrained(model, None, Path(folder) / "again")  # gathered from its parts
        equal = (Path(folder) / "again/model.safetensors").read_bytes() == (
            Path(folder) / "model.safetensors"
        ).read_bytes()
    return {
        "everything": everything,
        "shares": shares,
        "wanted": wanted,
        "said": said,
        "replicated": replicated,
        "exported_equal": equal,
    }


JOBS = {
    "trees": functools.partial(run_training, "trees"),
    "rows": functools.partial(run_training, "rows"),
    "search": run_search,
    "search_apart": functools.partial(run_search, apart=True),
    "compile": run_compile,
    "compile_none": functools.partial(run_compile, remat="none"),
    "compile_dots": functools.partial(run_compile, remat="dots"),
    "decode": run_decode,
    "load": run_load,
}


def main():
    job, folder, *specs = sys.argv[1:]
    for spec in specs:
        mesh = make_mesh(None if spec == "none" else spec)
        np.savez(Path(folder) / f"{spec}.npz", **JOBS[job](mesh))


if __name__ == "__main__":
    main()
