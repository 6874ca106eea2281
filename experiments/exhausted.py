"""Errors that say no more than that the disk is full or memory is short, told in one line with what can be done."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from absl import flags

FLAGS = flags.FLAGS

_FULL = "No space left on device"
_TOO_LARGE = "File too large"
_OUTPUTS = ("output", "out_dir", "trl_output", "trees", "dataset_dir")
_SIZES = (
    "batch_size",
    "group",
    "num_branches",
    "num_samples",
    "max_new_tokens",
    "train.pack_rows",
    "train.micro_batch_size",
)


def exhausted(error: BaseException) -> str | None:
    """What ran out, where, and which flags help; None for an error of another kind.

    Args:
      error: what a program ended with. Libraries raise from threads and wrap what they caught, so its causes count too.
    """
    for cause in _causes(error):
        text = str(cause)
        where = getattr(cause, "filename", None) or _given(_OUTPUTS) or "output"
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL in text:
            return (
                f"{where}: no space left on the disk: make room and run the same command again, which goes on"
            )
        if getattr(cause, "errno", None) == errno.EFBIG or _TOO_LARGE in text:
            return (
                f"{where}: larger than files may be here: raise the limit (ulimit -f), or write to another file system, "
                "and run the same command again, which goes on"
            )
        if isinstance(cause, MemoryError) or ("RESOURCE_EXHAUSTED" in text and "memory" in text):
            asked = re.search(r"allocat\w+ (\d+) bytes", text)
            size = f" (asked for {int(asked[1]) / 2**30:.1f} GiB at once)" if asked else ""
            lower = ", ".join(f"--{name}" for name in _SIZES if name in FLAGS)
            return f"out of memory{size}: lower {lower or 'the sizes'}, or take a device with more"
    return None


def _given(names: tuple[str, ...]) -> str:
    return ", ".join(f"--{name}={FLAGS[name].value}" for name in names if name in FLAGS and FLAGS[name].value)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
