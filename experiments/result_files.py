"""Files that a program writes whole at its end: whose they are is checked before the work, not after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

FLAGS = flags.FLAGS
_NO_SETTINGS = ("output", "hlo", "overwrite", "quiet", "log_json")


def define_output_flags(help_text: str) -> None:
    """--output and --overwrite."""
    flags.DEFINE_string("output", None, help_text)
    flags.DEFINE_bool(
        "overwrite", False, "replace an output that has other settings, or that this program did not write"
    )


def flag_values() -> dict[str, Any]:
    """Name -> value of the program's own flags that shape what it finds, for the manifest."""
    return {
        flag.name: flag.value
        for module, defined in FLAGS.flags_by_module_dict().items()
        if module == sys.argv[0] or module.startswith("experiments.")
        for flag in defined
        if flag.name not in _NO_SETTINGS
    }


def claim(flag: str, program: str, config: Mapping[str, Any] | None = None) -> Callable[[Any], None]:
    """What writes the file of a flag: text as it is, other values as JSON; nothing where the flag was not given.

    Args:
      flag: its name; the value is the file's path.
      program: the program's name, for the manifest beside the file.
      config: every setting that shapes the contents, as plain JSON values; default: `flag_values()`.

    Raises:
      UserError: a file is there that this program did not write, or wrote with other settings, and --overwrite
        was not given.
    """
    from caspo_jax.outputs import Manifest, check_own, manifest_path
    from caspo_jax.store import write_json, write_text

    path = FLAGS[flag].value
    if path is None:
        return lambda value: None
    check_own(path, FLAGS.overwrite)
    manifest = Manifest.open(
        manifest_path(path),
        program=program,
        config=flag_values() if config is None else config,
        # A manifest without its file is of a run that ended before it had anything to write.
        overwrite=FLAGS.overwrite or not Path(path).exists(),
    )

    def write(value: Any) -> None:
        if isinstance(value, str):
            write_text(path, value)
        else:
            write_json(path, value)
        manifest.finish()

    return write
