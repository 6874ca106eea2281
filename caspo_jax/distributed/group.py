"""The processes of one run: which of them writes, and barriers that say who is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

from caspo_jax.errors import UserError

BARRIER_SECONDS = 3600.0  # the writer may hash, verify or write for long; the dead are noticed earlier
PREFIX = "caspo_jax"  # of our keys in the coordination service


@dataclasses.dataclass
class Group:
    """The processes of this run, as this one sees them."""

    index: int = 0
    count: int = 1
    client: Any = None  # of the coordination service
    hosts: tuple[str, ...] = ()
    barriers: int = 0  # that this process came to
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    watch: threading.Thread | None = None  # over the others, until it is over

    def name(self, index: int) -> str:
        """A process as messages call it."""
        host = f" ({self.hosts[index]})" if self.hosts else ""
        return f"process {index}{host}"


GROUP = Group()


def process_index() -> int:
    """This process's number; 0 writes."""
    return GROUP.index


def process_count() -> int:
    """How many processes the run has."""
    return GROUP.count


def is_writer() -> bool:
    """Whether this process writes the run's files."""
    return GROUP.index == 0


def barrier(name: str, timeout: float = BARRIER_SECONDS) -> None:
    """Waits until every process is here.

    Raises:
      UserError: some did not come in time; names them, and where they were last.
    """
    if GROUP.count == 1:
        return
    client, index = GROUP.client, GROUP.index
    GROUP.barriers += 1
    key = f"{PREFIX}/barrier/{GROUP.barriers}"
    client.key_value_set(f"{PREFIX}/at/{index}", name, allow_overwrite=True)
    client.key_value_set(f"{key}/{index}", name)
    try:
        client.wait_at_barrier(f"{key}/{name}", int(timeout * 1000))
    except RuntimeError as error:
        here = {path.rpartition("/")[2] for path, at in client.key_value_dir_get(key) if at == name}
        last = {path.rpartition("/")[2]: at for path, at in client.key_value_dir_get(f"{PREFIX}/at")}
        missing = [
            f"{GROUP.name(i)}, last at {last.get(str(i), 'its start')!r}"
            for i in range(GROUP.count)
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
    if GROUP.count == 1:
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
    if GROUP.count == 1:
        return compute()
    key = f"{PREFIX}/value/{GROUP.barriers}/{name}"
    if is_writer():
        GROUP.client.key_value_set(key, compute())
    value = GROUP.client.blocking_key_value_get(key, int(BARRIER_SECONDS * 1000))
    barrier(name)
    if is_writer():
        GROUP.client.key_value_delete(key)
    return value
