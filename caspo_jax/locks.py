"""One run at a time for one output: a second that would write it meanwhile is refused.

The lock is the operating system's (`flock`) on a hidden file beside the output, so it ends with the process that holds
it, however that ends. The file itself means nothing: one that a killed run left is locked again, and removed, by the next.
Where there are no such locks (Windows, some network file systems) nothing is held and nothing is refused.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from caspo_jax.distributed import is_writer
from caspo_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, int] = {}  # lock file -> its open descriptor


def hold(path: str | Path) -> bool:
    """Keeps other processes from writing at `path`, until `release` or the end of this process.

    Of several processes of one run the writer alone holds it (`caspo_jax.distributed`).

    Args:
      path: the output, or its manifest.

    Returns:
      Whether this call took the lock: False where the process has it already, or there are no locks.

    Raises:
      UserError: another process holds it.
    """
    lock = _lock_of(path)
    if fcntl is None or not is_writer() or lock in _held:
        return False
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock)
    except BlockingIOError as error:
        raise UserError(
            f"another run{_holder(lock)} is writing {_output_of(Path(path))}: "
            "wait until it ends, or use another output"
        ) from error
    except OSError:  # no locks here, or no file can be written: then the output itself will say so
        return False
    _held[lock] = descriptor
    return True


def release(path: str | Path) -> None:
    """Ends what `hold` began; without that it does nothing."""
    _release(_lock_of(path))


@contextlib.contextmanager
def held(path: str | Path) -> Iterator[None]:
    """`hold` for as long as the body runs. Raises as `hold` does."""
    taken = hold(path)
    try:
        yield
    finally:
        if taken:
            release(path)


def _lock_of(path: str | Path) -> Path:
    path = Path(path)
    return path.parent.resolve() / f".{path.name}.lock"


def _output_of(path: Path) -> Path:
    """What a manifest is of (`outputs.manifest_path`); any other path stands for itself."""
    if path.name == "manifest.json":
        return path.parent
    return path.with_name(path.name.removesuffix(".manifest.json"))


def _locked(lock: Path) -> int:
    """A descriptor of the lock file, locked and with this process's name in it. Raises BlockingIOError if another has it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open(lock, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):  # no locks here: the file is of no use
                lock.unlink(missing_ok=True)
            raise
        os.close(descriptor)  # its last holder removed the file after it was opened here: try the next one


def _is_open(lock: Path, descriptor: int) -> bool:
    """Whether the descriptor is still of the file by that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    return False


def _holder(lock: Path) -> str:
    """Who wrote its name into the lock file, in brackets; nothing where that cannot be read."""
    with contextlib.suppress(OSError):
        if name := lock.read_text(encoding="utf-8", errors="replace"):
            return f" ({name})"
    return ""


def _release(lock: Path) -> None:
    descriptor = _held.pop(lock, None)
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        if _is_open(lock, descriptor):
            lock.unlink()  # before it is unlocked, or it could be another run's by now
    os.close(descriptor)


@atexit.register
def _release_all() -> None:
    for lock in list(_held):
        _release(lock)
