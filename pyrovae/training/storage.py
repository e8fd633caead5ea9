"""Folders that a fit is saved in: tensors in one safetensors file, everything else in one JSON file; no pickle.

The JSON file names the tensor file and its SHA-256 and is replaced in one step, after the tensors are on the disk, so
that a folder holds one whole fit at any moment.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyrovae.checks import writable_folder

DOCUMENT = "fit.json"
FORMAT = 1


def holds_fit(folder: str | Path) -> bool:
    """Whether ``folder`` holds a saved fit."""
    return (Path(folder) / DOCUMENT).is_file()


def write(folder: str | Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Save tensors and a JSON document in ``folder``; what was there before stays until the new is whole.

    Raises:
        ValueError: when the folder cannot be written.
    """
    folder = writable_folder(folder)
    name = f"tensors-{uuid.uuid4().hex[:12]}.safetensors"
    content = save({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()})
    document = {"format": FORMAT, **document, "tensors": {"file": name, "sha256": hashlib.sha256(content).hexdigest()}}
    try:
        _durably(folder / name, content)
        _durably(folder / DOCUMENT, json.dumps(document, indent=1).encode())
    except OSError as error:
        (folder / name).unlink(missing_ok=True)
        raise ValueError(
            f"cannot save into {str(folder)!r} ({error.strerror}); what was saved there before is kept"
        ) from None
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def read(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the document that :func:`write` saved.

    Raises:
        ValueError: when there is no saved fit, or it is truncated, altered or of a newer format.
    """
    path = Path(folder) / DOCUMENT
    try:
        document = json.loads(path.read_bytes())
        named = document["tensors"]["file"], document["tensors"]["sha256"]
    except FileNotFoundError:
        raise ValueError(f"{str(folder)!r} holds no saved fit: there is no file {DOCUMENT!r}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a saved fit: {error}") from None
    if document.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} has format {document.get('format')!r}, this version of pyrovae reads {FORMAT}")
    tensors = path.with_name(Path(named[0]).name)
    try:
        content = tensors.read_bytes()
        if hashlib.sha256(content).hexdigest() != named[1]:
            raise ValueError("its SHA-256 is not the one that was saved, so it is truncated or altered")
        return load(content), document
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{str(tensors)!r} cannot be read: {error}") from None


def flatten(state: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Move every tensor of nested dicts and lists into ``tensors``; return a JSON value that refers to them by name.

    Raises:
        ValueError: for a value that is neither a tensor nor JSON.
    """
    if isinstance(state, Tensor):
        tensors[prefix] = state
        return {"tensor": prefix}
    if isinstance(state, dict):
        items = [[key, flatten(value, f"{prefix}/{key}", tensors)] for key, value in state.items()]
        return {"items": items}
    if isinstance(state, list | tuple):
        return [flatten(value, f"{prefix}/{i}", tensors) for i, value in enumerate(state)]
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise ValueError(
        f"{prefix} is a {type(state).__name__}, which cannot be saved: use another optimizer, or no checkpoint"
    )


def unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo :func:`flatten`."""
    if isinstance(value, list):
        return [unflatten(part, tensors) for part in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: unflatten(part, tensors) for key, part in value["items"]}
    return value


def _durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
