"""Folders of saved fits: tensors in one safetensors file, everything else in one JSON file; no pickle.

The JSON file names the tensor file and its SHA-256, and also holds a SHA-256 of itself. It is replaced in one step,
after the tensors are on the disk, so that a folder holds one whole fit at any moment.
"""

import hashlib
import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pyrovae.common.checks import writable_folder
from pyrovae.saving import remove_stale, write_whole
from pyrovae.training.migrations import FORMAT, migrated

DOCUMENT = "fit.json"
FIT = "fit"  # the folder inside its own where the command saves
_TENSORS = "tensors-*.safetensors"
_WRITTEN_AS = "written by pyrovae as"  # in each tensor file's header; its value is the name of the file
_READS = 20  # attempts to read a folder while another process replaces its files


def holds_fit(folder: str | Path) -> bool:
    """Whether ``folder`` holds a saved fit."""
    return (Path(folder) / DOCUMENT).is_file()


def fit_folder(folder: str | Path) -> Path:
    """Return the folder of the saved fit: the folder itself, or one inside it, such as ``fit`` of ``pyrovae fit``.

    Raises:
        ValueError: for a folder that holds several fits, as ``pyrovae compare`` leaves it; the message names them.
    """
    folder = Path(folder)
    if holds_fit(folder) or not folder.is_dir():
        return folder
    if holds_fit(folder / FIT):
        return folder / FIT
    inside = sorted(path.parent.name for path in folder.glob(f"*/{DOCUMENT}"))
    if len(inside) > 1:
        raise ValueError(f"{str(folder)!r} holds several fits: name the folder of one, {', '.join(inside)} inside it")
    return folder / inside[0] if inside else folder


def write(folder: str | Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Save tensors and a JSON document in ``folder``; the previous fit stays there until the new one is whole.

    The caller holds the folder's lock.

    Raises:
        ValueError: when the folder cannot be written.
    """
    folder = writable_folder(folder)
    old_name = _named_before(folder)
    name = f"tensors-{secrets.token_hex(6)}.safetensors"
    content = save({key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}, {_WRITTEN_AS: name})
    document = {"format": FORMAT, **document, "tensors": {"file": name, "sha256": hashlib.sha256(content).hexdigest()}}
    document["sha256"] = _checksum(document)
    try:
        write_whole(folder / name, content)
        write_whole(folder / DOCUMENT, json.dumps(document, indent=1).encode())
    except ValueError as error:
        with suppress(OSError):
            (folder / name).unlink()
        note = "; what was saved there before is kept" if holds_fit(folder) else ""
        raise ValueError(f"cannot save into {str(folder)!r}: {str(error).partition(';')[0]}{note}") from None
    if old_name is not None:
        (folder / old_name).unlink(missing_ok=True)
    _clear(folder, keep=name)


def remove(folder: Path) -> None:
    """Remove a saved fit from a folder; the caller holds the folder's lock."""
    (folder / DOCUMENT).unlink(missing_ok=True)
    _clear(folder)


def _named_before(folder: Path) -> str | None:
    """Return the name of the tensor file of the fit in a folder, or None where it cannot be read."""
    try:
        return Path(_document(folder / DOCUMENT)[1]["tensors"]["file"]).name
    except ValueError:
        return None


def _clear(folder: Path, keep: str = "") -> None:
    """Remove the tensor files of earlier saves, and the files that killed saves left behind."""
    for path in folder.glob(_TENSORS):
        if path.name != keep and _is_ours(path):
            with suppress(OSError):
                path.unlink()
    for names in (_TENSORS, DOCUMENT):
        remove_stale(folder, names)


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(_WRITTEN_AS) == path.name
    except (OSError, SafetensorError):
        return False


def _checksum(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a document's content, without the entry for this SHA-256."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def read(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the document that :func:`write` saved, even while another process saves there.

    Raises:
        ValueError: when there is no saved fit, or it is truncated, altered or of a newer format.
    """
    path = Path(folder) / DOCUMENT
    for attempt in range(_READS):
        content, document = _document(path)
        entry = document["tensors"]
        tensor_path = path.with_name(Path(entry["file"]).name)
        try:
            tensor_bytes = tensor_path.read_bytes()
            if hashlib.sha256(tensor_bytes).hexdigest() != entry["sha256"]:
                raise ValueError("its SHA-256 is not the one that was saved, so it is truncated or altered")
            return load(tensor_bytes), document
        except (OSError, ValueError, SafetensorError) as error:
            if attempt < _READS - 1 and (not path.is_file() or path.read_bytes() != content):
                time.sleep(0.01)
                continue  # another process has replaced it
            raise ValueError(f"{str(tensor_path)!r} cannot be read: {error}") from None
    raise AssertionError("the last attempt returns or raises")


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of the checkpoint in a folder, which a resumed fit must share; empty for any other save."""
    resume = _document(folder / DOCUMENT)[1].get("resume") or {}
    return dict(resume.get("settings", {}))


def _document(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return a document twice: as the bytes on the disk, and parsed and migrated."""
    try:
        content = path.read_bytes()
        document = json.loads(content)
        entry = document["tensors"]
        whole = {type(part) for part in (entry["file"], entry["sha256"])} == {str}
        version, checksum = document.get("format"), document.get("sha256")
    except FileNotFoundError:
        raise ValueError(f"{str(path.parent)!r} holds no saved fit: there is no file {DOCUMENT!r}") from None
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read as a saved fit: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a saved fit ({type(error).__name__}): it is truncated or altered"
        ) from None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"{str(path)!r} has format {version}, this version of pyrovae reads {FORMAT} and older")
    if not whole or version not in range(1, FORMAT + 1) or checksum != (None if version == 1 else _checksum(document)):
        raise ValueError(f"{str(path)!r} is not what was saved, by its SHA-256: it is truncated or altered")
    return content, migrated(document)


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
