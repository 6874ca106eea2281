"""Several processes of one run: start-up, one writer, barriers that say who is missing, and a watch over the others.

The processes are JAX's own (`jax.distributed`); all of them run the same program on one mesh over all their devices.
Process 0 writes the files, the others read them: the output folder lies on a file system that all of them see. With
one process nothing here waits for anyone, and JAX is not imported; `fail` and `lost` end the process all the same.
"""

from caspo_jax.distributed.group import (
    barrier,
    from_writer,
    is_writer,
    process_count,
    process_index,
    writer_first,
)
from caspo_jax.distributed.joining import start
from caspo_jax.distributed.watch import fail, finish, lost

__all__ = [
    "barrier",
    "fail",
    "finish",
    "from_writer",
    "is_writer",
    "lost",
    "process_count",
    "process_index",
    "start",
    "writer_first",
]
