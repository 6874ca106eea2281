"""One process of two: `python job.py INDEX PORT JOB FOLDER`."""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path

from caspo_jax import distributed
from caspo_jax.distributed import watch

INDEX, PORT, JOB, FOLDER = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])


def whole_job(devices, axes):
    """Trains and searches on a mesh of so many devices over both processes' devices, and uses every means of working together."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "sharding"))
    import jax
    import numpy as np
    from on_devices import PACKING, SETTINGS, preferences, run_search, small_decoder

    from caspo_jax.models import load_pretrained, save_pretrained
    from caspo_jax.outputs import JsonlOutput, Manifest
    from caspo_jax.sharding import make_mesh, to_host
    from caspo_jax.training import TrainConfig, train

    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, devices, devices // 2)
    mesh = make_mesh(axes)
    pairs, verified = preferences()
    config = TrainConfig(pack="trees", batch_size=7, **PACKING["trees"], **SETTINGS, save_every=2)
    model, summary = train(small_decoder(mesh), pairs, config, verified=verified, out_dir=FOLDER / "run")
    save_pretrained(model, None, FOLDER / "policy")
    split, _ = load_pretrained(FOLDER / "policy", mesh=mesh)
    assert not split.embed[...].is_fully_addressable
    arrays = run_search(mesh)

    assert distributed.from_writer("word", lambda: f"said by {INDEX}") == "said by 0"
    output = JsonlOutput(
        FOLDER / "lines.jsonl", Manifest.open(FOLDER / "lines.manifest.json", program="test", config={})
    )
    output.append([{"id": "a"}, {"id": "b", "by": INDEX}])
    output.finish(lines=2)
    assert [json.loads(x)["id"] for x in (FOLDER / "lines.jsonl").read_text().splitlines()] == ["a", "b"]
    arrays["loss"] = np.array([record["loss"] for record in summary.history])
    arrays["embed"] = to_host(split.embed[...])
    np.savez(FOLDER / f"process{INDEX}.npz", **arrays)


def long_run():
    """Trains for longer than a test waits, with the clocks of both processes far apart; somebody will press Ctrl-C."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "sharding"))
    from on_devices import PACKING, SETTINGS, preferences, small_decoder

    from caspo_jax.sharding import make_mesh
    from caspo_jax.training import TrainConfig, save_clock, train

    save_clock.SAVE_SECONDS = 2.0 if INDEX == 0 else 1e9
    mesh = make_mesh("data:2,fsdp:4")
    pairs, verified = preferences()
    settings = SETTINGS | {"max_steps": 10**6, "epochs": 10**6}
    config = TrainConfig(pack="rows", batch_size=10, **PACKING["rows"], **settings)
    train(small_decoder(mesh), pairs, config, verified=verified, out_dir=FOLDER / "run")


def late():
    """The second process does not come to a barrier."""
    distributed.barrier("together")
    if INDEX == 1:
        time.sleep(8)
    else:
        distributed.barrier("without the other", timeout=2)


def forever():
    """Sums over both processes without end; one of them will be killed."""
    import jax
    import numpy as np

    from caspo_jax.sharding import make_mesh, place, whole

    mesh = make_mesh("fsdp:-1")
    x = place(mesh, np.ones((8, 1)))
    total = jax.jit(lambda x: whole(mesh, x.sum()))
    for step in range(10**9):
        total(x).block_until_ready()
        if step == 5:
            (FOLDER / f"running{INDEX}").touch()


def refused():
    """The second process finds its input bad."""
    from caspo_jax.errors import UserError

    if INDEX == 1:
        raise UserError("line 7 is bad")
    forever()


if __name__ == "__main__":
    from absl import flags

    from experiments import common

    watch.SILENT_SECONDS = 10.0
    common.define_process_flags()
    flags.FLAGS(
        ["job", f"--coordinator_address=127.0.0.1:{PORT}", "--num_processes=2", f"--process_id={INDEX}"]
    )
    jobs = {
        "four": functools.partial(whole_job, 4, "fsdp:2,tensor:2"),
        "eight": functools.partial(whole_job, 8, "data:2,fsdp:2,tensor:2"),
        "long": long_run,
        "late": late,
        "forever": forever,
        "refused": refused,
    }
    sys.exit(common.guarded(jobs[JOB], ["job"]))
