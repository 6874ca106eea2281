"""How a process finds the others of its run."""

from __future__ import annotations

import glob
import importlib.util
import os
import socket
import sys

from caspo_jax.distributed import watch
from caspo_jax.distributed.group import GROUP, PREFIX
from caspo_jax.errors import UserError, first_line


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Joins the run's other processes; call it before anything touches a device.

    Without arguments the cluster is found as JAX finds it (SLURM, Open MPI, Cloud TPU), and outside of one this does
    nothing. Processes that were joined already, by `jax.distributed.initialize`, are taken as they are.

    Args:
      coordinator_address: `host:port` of process 0.
      num_processes: how many there are.
      process_id: which this is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: some of the three arguments without the others, or wrong ones, a device that was touched before, or
        the others do not come.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(x is not None for x in given) and None in given:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together: give all three, or none"
        )
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: must be at least 1")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(f"--process_id={process_id}: must be from 0 to {num_processes - 1}")
    host, _, port = (coordinator_address or "none:1").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"--coordinator_address={coordinator_address}: give HOST:PORT of process 0")
    if GROUP.client is not None:
        return
    if not _initialized():
        if num_processes == 1 or (given == (None,) * 3 and not _in_cluster()):
            return
        if not _initialize(given, timeout):
            return
    _form_group(timeout)


def _initialized() -> bool:
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def _initialize(given: tuple[str | None, int | None, int | None], timeout: float) -> bool:
    """JAX's own start-up; False where there turn out to be no others."""
    import jax

    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=int(timeout),
            # The watch, which says more, comes first.
            heartbeat_timeout_seconds=int(2 * watch.SILENT_SECONDS),
            shutdown_timeout_seconds=int(watch.SILENT_SECONDS),
        )
    except ValueError as error:
        if given == (None,) * 3:  # a machine that looks like part of a cluster and is none
            return False
        raise UserError(f"--coordinator_address={given[0]}: {error}") from error
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise UserError(
                "the run's processes cannot be joined any more: call distributed.start before anything touches a device"
            ) from error
        raise UserError(
            f"the run's {given[1] or ''} processes did not find each other within {timeout:.0f} s ({first_line(error)})"
        ) from error
    return True


def _form_group(timeout: float) -> None:
    """Learns who the others are, and watches over them from now on."""
    import jax
    from jax._src.distributed import global_state  # the service's client has no public name

    count = jax.process_count()
    if count == 1:
        return
    GROUP.index, GROUP.count, GROUP.client = jax.process_index(), count, global_state.client
    GROUP.client.key_value_set(f"{PREFIX}/host/{GROUP.index}", socket.gethostname())
    hosts = (f"{PREFIX}/host/{i}" for i in range(count))
    milliseconds = int(timeout * 1000)
    GROUP.hosts = tuple(GROUP.client.blocking_key_value_get(key, milliseconds) for key in hosts)
    watch.begin()


def _in_cluster() -> bool:
    """Whether this process looks like one of several: where it does, JAX is asked for the rest."""
    environment = os.environ
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1") not in ("", "1"):
            return True
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
