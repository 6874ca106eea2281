"""Several processes of one run: start-up, one writer, barriers that say who is missing, and a watch over the others.

The processes are JAX's own (`jax.distributed`); all of them run the same program on one mesh over all their devices.
Process 0 writes the files, the others read them: the output folder lies on a file system that all of them see. With
one process every function here does nothing, and JAX is not imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from caspo_jax.errors import UserError

BEAT_SECONDS = 2.0  # between two signs of life
SILENT_SECONDS = 30.0  # after which a process without one is taken for dead
BARRIER_SECONDS = 3600.0  # the writer may hash, verify or write for long; the dead are noticed earlier
_PREFIX = "caspo_jax"


@dataclasses.dataclass
class _Group:
    """The processes of this run, as this one sees them."""

    index: int = 0
    count: int = 1
    client: Any = None  # of the coordination service
    hosts: tuple[str, ...] = ()
    barriers: int = 0  # that this process came to
    watch: threading.Thread | None = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def name(self, index: int) -> str:
        host = f" ({self.hosts[index]})" if self.hosts else ""
        return f"process {index}{host}"


_group = _Group()


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
      UserError: some of the three arguments without the others, or wrong ones, or the others do not come.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(x is not None for x in given) and None in given:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together: give all three, or none"
        )
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(f"--process_id={process_id}: must be from 0 to {num_processes - 1}")
    host, _, port = (coordinator_address or "none:1").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"--coordinator_address={coordinator_address}: give HOST:PORT of process 0")
    if _group.client is not None:
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
            heartbeat_timeout_seconds=int(2 * SILENT_SECONDS),  # the watch, which says more, comes first
            shutdown_timeout_seconds=int(SILENT_SECONDS),
        )
    except ValueError as error:
        if given == (None,) * 3:  # a machine that looks like part of a cluster and is none
            return False
        raise UserError(f"--coordinator_address={given[0]}: {error}") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"the run's {given[1] or ''} processes did not find each other within {timeout:.0f} s ({reason})"
        ) from error
    return True


def _form_group(timeout: float) -> None:
    """Learns who the others are, and watches over them from now on."""
    import jax
    from jax._src.distributed import global_state  # the service's client has no public name

    count = jax.process_count()
    if count == 1:
        return
    _group.index, _group.count, _group.client = jax.process_index(), count, global_state.client
    _group.client.key_value_set(f"{_PREFIX}/host/{_group.index}", socket.gethostname())
    hosts = (f"{_PREFIX}/host/{i}" for i in range(count))
    milliseconds = int(timeout * 1000)
    _group.hosts = tuple(_group.client.blocking_key_value_get(key, milliseconds) for key in hosts)
    _group.watch = threading.Thread(target=_watch, name="processes", daemon=True)
    _group.watch.start()


def _in_cluster() -> bool:
    """Whether this process looks like one of several: where it does, JAX is asked for the rest."""
    environment = os.environ
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1") not in ("", "1"):
            return True
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) and _has_libtpu()


def _has_libtpu() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None


def process_index() -> int:
    """This process's number; 0 writes."""
    return _group.index


def process_count() -> int:
    """How many processes the run has."""
    return _group.count


def is_writer() -> bool:
    """Whether this process writes the run's files."""
    return _group.index == 0


def barrier(name: str, timeout: float = BARRIER_SECONDS) -> None:
    """Waits until every process is here.

    Raises:
      UserError: some did not come in time; names them, and where they were last.
    """
    if _group.count == 1:
        return
    client, index = _group.client, _group.index
    _group.barriers += 1
    key = f"{_PREFIX}/barrier/{_group.barriers}"
    client.key_value_set(f"{_PREFIX}/at/{index}", name, allow_overwrite=True)
    client.key_value_set(f"{key}/{index}", name)
    try:
        client.wait_at_barrier(f"{key}/{name}", int(timeout * 1000))
    except RuntimeError as error:
        here = {path.rpartition("/")[2] for path, at in client.key_value_dir_get(key) if at == name}
        last = {path.rpartition("/")[2]: at for path, at in client.key_value_dir_get(f"{_PREFIX}/at")}
        missing = [
            f"{_group.name(i)}, last at {last.get(str(i), 'its start')!r}"
            for i in range(_group.count)
            if str(i) not in here
        ]
        raise UserError(
            f"barrier {name!r}: {'; '.join(missing) or 'nobody'} missing after {timeout:.0f} s: "
            "stop all processes and start them again"
        ) from error
    if index == 0:
        client.key_value_delete(key)


@contextlib.contextmanager
def writer_first(name: str) -> Iterator[None]:
    """The body, first in the process that writes, then in the others, which find its files as they are to be."""
    if _group.count == 1:
        yield
        return
    if not is_writer():
        barrier(f"{name}: written")
    yield
    if is_writer():
        barrier(f"{name}: written")
    barrier(f"{name}: read")


def from_writer(name: str, compute: Callable[[], str]) -> str:
    """What `compute` gives in the process that writes, in every process."""
    if _group.count == 1:
        return compute()
    key = f"{_PREFIX}/value/{_group.barriers}/{name}"
    if is_writer():
        _group.client.key_value_set(key, compute())
    value = _group.client.blocking_key_value_get(key, int(BARRIER_SECONDS * 1000))
    barrier(name)
    if is_writer():
        _group.client.key_value_delete(key)
    return value


def finish() -> None:
    """Leaves the run in good order, together with the others; a second call does nothing."""
    if _group.count == 1 or _group.over.is_set():
        return
    barrier("the end")
    _group.over.set()
    import jax

    jax.distributed.shutdown()


def fail(message: str) -> NoReturn:
    """Ends this process, and with it the others, which name it and its reason."""
    _group.over.set()
    with contextlib.suppress(RuntimeError):
        _group.client.key_value_set(f"{_PREFIX}/failed/{_group.index}", message, allow_overwrite=True)
        time.sleep(2 * BEAT_SECONDS)  # process 0 takes the message with it
    _exit()


def lost(error: Exception) -> NoReturn:
    """Ends this process after a collective operation failed: another process is gone, and the watch finds out which."""
    time.sleep(SILENT_SECONDS + 3 * BEAT_SECONDS)
    reason = str(error).strip().splitlines()[0][:200]
    _die(f"an operation over all processes failed ({reason})")


def _watch() -> None:
    """Gives signs of life and looks for those of the others; the main thread may be waiting for one of them forever."""
    client, index = _group.client, _group.index
    seen = dict.fromkeys(range(_group.count), ("", time.monotonic()))
    beat = 0
    while not _group.over.wait(BEAT_SECONDS):
        beat += 1
        try:
            client.key_value_set(f"{_PREFIX}/alive/{index}", str(beat), allow_overwrite=True)
            alive = client.key_value_dir_get(f"{_PREFIX}/alive")
            failed = client.key_value_dir_get(f"{_PREFIX}/failed")
        except RuntimeError:
            if not _group.over.is_set():
                _die(f"{_group.name(0)}, which coordinates the run, is gone")
            return
        if failed:
            path, message = failed[0]
            _die(f"{_group.name(int(path.rpartition('/')[2]))} stopped: {message}")
        now = time.monotonic()
        for path, sign in alive:
            other = int(path.rpartition("/")[2])
            if seen[other][0] != sign:
                seen[other] = (sign, now)
        silent = [i for i, (_, when) in seen.items() if now - when > SILENT_SECONDS and i != index]
        if silent:
            names = ", ".join(_group.name(i) for i in silent)
            _die(f"{names} gave no sign of life for {SILENT_SECONDS:.0f} s")


def _die(reason: str) -> NoReturn:
    if not _group.over.is_set():
        print(
            f"error: {' '.join(reason.split())}; start all processes again: the run goes on where it was",
            file=sys.stderr,
            flush=True,
        )
    if is_writer():
        time.sleep(
            3 * BEAT_SECONDS
        )  # the service goes last: without it JAX aborts the processes that still end
    _exit()


def _exit() -> NoReturn:
    # Leaving in order would wait for the processes that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
