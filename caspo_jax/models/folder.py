"""Where a checkpoint lies: a folder, or an id on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from caspo_jax.errors import UserError
from caspo_jax.store import hash_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What is read of a checkpoint: configuration, weights, tokenizer. Tokenizers without tokenizer.json have files of many names.
_CHECKPOINT = re.compile(
    r"(config|generation_config|caspo|(tokenizer|vocab|added_tokens|special_tokens|chat_template)\w*)\.json"
    r"|(merges|vocab)\.txt|[^/]+\.(safetensors|safetensors\.index\.json|jinja|model|tiktoken)"
)


def resolve_folder(path: str | Path) -> Path:
    """The local folder of a checkpoint: the path itself, or a hub id's snapshot (downloaded if need be).

    Raises:
      UserError: neither a folder nor a hub id that can be fetched; or adapters alone.
    """
    folder = _found(path)
    if (folder / "adapter_config.json").is_file() and not _holds_model(folder):
        raise UserError(
            f"{path}: holds LoRA adapters and no model: merge them into the model that they are of, by "
            f"experiments.export --model=MODEL --adapter={path} --output=DIR"
        )
    return folder


def hash_checkpoint(folder: str | Path) -> str:
    """SHA-256 of what is read of a checkpoint's folder; outputs that were written into it do not make it another policy."""
    return hash_path(folder, only=_CHECKPOINT)


def _holds_model(folder: Path) -> bool:
    """Whether a folder holds a model's weights, pickled ones too; some trainers put its config.json beside adapters alone."""
    patterns = ("model.safetensors*", "pytorch_model*")  # one file, or the index of several
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in patterns)


def _found(path: str | Path) -> Path:
    """The folder, whatever it holds."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{path}: is a file; give the folder that holds config.json and the safetensors")
    if not _HUB_ID.fullmatch(str(path)):
        raise UserError(f"{path}: model folder not found")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"])
        )
    except Exception as error:  # the hub client and its transport raise many kinds
        raise UserError(
            f"{path}: no such folder, and it cannot be fetched from the hub ({type(error).__name__})"
        ) from error
