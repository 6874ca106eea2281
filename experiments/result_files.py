"""Files that a program writes whole at its end: whose they are is checked before the work, not after it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from caspo_jax.distributed import from_writer, is_writer, writer_first
from caspo_jax.errors import UserError
from caspo_jax.evaluation.report import is_report
from caspo_jax.locks import release
from caspo_jax.outputs import ROWS, Manifest, check_own, manifest_path
from caspo_jax.records import schema
from caspo_jax.store import write_json, write_text

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


def claim(
    flag: str,
    program: str,
    config: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str | Path | None] | None = None,
) -> Callable[..., None]:
    """A function that writes a flag's file and completes its manifest with counts; it does nothing if the flag was not given.

    It takes what is to be written, and the counts as keywords. Text is written as it is; records become JSON, with the
    program's name as their `schema` if they have none.

    Args:
      flag: its name; the value is the file's path.
      program: the program's name, for the manifest beside the file.
      config: every setting that shapes the contents, as plain JSON values; default: `flag_values()`.
      inputs: as `claim_files` takes them.

    Raises:
      UserError: as `claim_files` does.
    """
    path = FLAGS[flag].value
    if path is None:
        return lambda value, **counts: None
    manifest = claim_files([path], program, flag_values() if config is None else config, inputs)

    def write(value: str | Mapping[str, Any], **counts: Any) -> None:
        if isinstance(value, str):
            write_text(path, value)
        else:
            write_json(path, {"schema": schema(program), **value})
        manifest.finish(**counts)

    return write


def claim_files(
    files: Sequence[str | Path],
    program: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path | None] | None = None,
    manifest: Path | None = None,
    free: Collection[str] = (),
) -> Manifest:
    """The manifest of these files, which stands for all of them.

    Args:
      files: what the program writes, whole, when its work is done.
      program: its name.
      config: every setting that shapes the contents, as plain JSON values.
      inputs: name -> file or folder whose contents shape them; hashed.
      manifest: its path; default: beside the first of the files.
      free: of the settings, see `Manifest.open`.

    Raises:
      UserError: one of them is there that this program did not write, or wrote with other settings, and --overwrite
        was not given; or another process is writing them.
    """
    manifest = manifest or manifest_path(files[0])
    check_files(files, manifest)
    return Manifest.open(
        manifest,
        program=program,
        config=config,
        inputs=inputs,
        free=free,
        # A manifest without its files is of a run that ended before it had anything to write.
        overwrite=FLAGS.overwrite or not any(Path(file).exists() for file in files),
    )


@contextlib.contextmanager
def claimed_folder(
    folder: str | Path, program: str, config: Mapping[str, Any], begun: Path
) -> Iterator[Callable[..., None]]:
    """FOLDER/manifest.json of a run whose stages have manifests of their own; the body is given what completes it with counts.

    Args:
      folder: of everything that the run writes.
      program: the program's name.
      config: every setting that shapes what the run writes, as plain JSON values.
      begun: the first stage's manifest. Before it is there nothing has been made: any settings may begin, and what
        refuses them leaves no manifest. A folder with it and without the folder's own is of an earlier version: it gets
        one once all stages took these settings.

    Raises:
      UserError: as `Manifest.open` does.
    """
    where = manifest_path(folder, folder=True)

    def state() -> str:
        if not begun.exists():
            return "new"
        return "begun" if where.exists() else "earlier"

    found = from_writer("folder", state)

    def claimed() -> Manifest:
        overwrite = FLAGS.overwrite or found == "new"
        return Manifest.open(where, program=program, config=config, free=ROWS, overwrite=overwrite)

    manifest = None if found == "earlier" else claimed()
    try:
        yield lambda **counts: (manifest or claimed()).finish(**counts)
    except UserError:
        if found == "new" and is_writer() and not begun.exists():
            where.unlink(missing_ok=True)
        release(where)
        raise


def folder_manifest(folder: str | Path, file: str | Path) -> Path:
    """FOLDER/manifest.json; the one of an earlier version, which stood beside `file`, is moved there."""
    where, earlier = manifest_path(folder, folder=True), manifest_path(file)
    with writer_first("manifest moved"):
        if is_writer() and earlier.exists() and not where.exists():
            earlier.rename(where)
    return where


def check_files(files: Sequence[str | Path], manifest: Path) -> None:
    """Refuses files and folders that are there where no manifest says that the program's run wrote them.

    Args:
      files: what the program writes, whole, when its work is done; of these report.html must be a report besides.
      manifest: what a run leaves where it writes them, from its start on.

    Raises:
      UserError: one of them is somebody's own, or another run's, and --overwrite was not given.
    """
    for file in files:
        check_own(file, FLAGS.overwrite, manifest)
        if Path(file).name == "report.html":
            check_report(file)


def check_report(path: str | Path) -> None:
    """Refuses a page that is there and is no HTML report of ours, unless it may be overwritten.

    Args:
      path: where a report is to be written.

    Raises:
      UserError: it is no report, or one from before they had a mark, and --overwrite was not given.
    """
    if Path(path).is_file() and not FLAGS.overwrite and not is_report(path):
        raise UserError(
            f"{path} is there and is no report of caspo_jax, or one from before they had a mark: "
            "remove it, use another output or --overwrite"
        )
