"""A folder that a command writes: it keeps a list of the files that are its own, and touches no other."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from pyrovae.common.checks import writable_folder
from pyrovae.saving.files import lock, remove_stale, write_whole

MANIFEST = ".pyrovae.json"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so


class RunFolder:
    """The folder of a command's results, and the list of what was written there.

    Args:
        path: of the folder; made by :meth:`begin`.

    Raises:
        ValueError: for an empty path, and for a list that cannot be read.
    """

    editable = ("config.yaml",)  # from which a run is started anew, with changes

    def __init__(self, path: str | Path) -> None:
        if not str(path).strip():
            raise ValueError("the folder for results is an empty string: name one, such as --out runs/first")
        self.path = Path(path)
        self.record: dict[str, Any] = self._read()

    @property
    def exists(self) -> bool:
        """Whether a command has written here before."""
        return bool(self.record)

    @property
    def files(self) -> list[str]:
        """Names of the files that are its own, relative to the folder."""
        return list(self.record.get("files", {}))

    @property
    def fits(self) -> list[str]:
        """Names of the subfolders that hold its fits."""
        return list(self.record.get("fits", []))

    def check(self, names: Iterable[str] = (), inputs: Iterable[Path] = ()) -> None:
        """See that a command can write here; nothing is made.

        Args:
            names: of the files that it will write.
            inputs: files that it reads.

        Raises:
            ValueError: when the folder is a file, holds what no command wrote, or an input would be written over.
        """
        names, inputs = list(names), list(inputs)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"cannot write into the folder {str(self.path)!r} (it is a file): name another")
        strangers = [p.name for p in self.path.iterdir() if p.name[0] != "."] if self.path.is_dir() else []
        if strangers and not self.exists:
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty ({sorted(strangers)[0]!r}) and no run's: name a new or "
                "empty folder for the results"
            )
        written = {(self.path / name).resolve() for name in names}
        for path in inputs:
            if path.resolve() in written:
                raise ValueError(f"{str(path)!r} would be read and written over: name another folder for the results")
        for name in names:
            if (self.path / name).exists() and not self.is_own(name):
                what = "was changed since this run wrote it" if name in self.files else "is not of this run"
                raise ValueError(
                    f"{str(self.path / name)!r} {what} and would be written over: move it, or name another folder for "
                    "the results"
                )

    def begin(self, **noted: Any) -> None:
        """Make the folder, and note in its list what is to be known of the run."""
        writable_folder(self.path)
        remove_stale(self.path, "*")
        self.record.pop("instead", None)  # of a run that was refused
        self.record = {"files": {}, "fits": [], **self.record, **noted}
        self._save()

    def clear(self) -> None:
        """Remove the files of the list, and no other; fits are removed by who knows what they consist of."""
        for name in self.files:
            path = self.path / name
            with suppress(FileNotFoundError):
                path.unlink()
            if path.parent != self.path:
                with suppress(OSError):  # the user's own files may be there
                    path.parent.rmdir()
        self.record.update(files={}, fits=[])
        self._save()

    def add_fit(self, name: str) -> Path:
        """Note that a subfolder holds a fit, and return it."""
        if name not in self.fits:
            self.record["fits"] = [*self.fits, name]
            self._save()
        return self.path / name

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file of the run's own, which is whole or not there.

        Raises:
            ValueError: when it cannot be written, or would take the place of a file that the run did not write.
        """
        self.check([name])
        content = content.encode() if isinstance(content, str) else content
        path = self.path / name
        writable_folder(path.parent)
        self.record["files"] = {**self.record["files"], name: ""}
        self._save()  # a run that ends between the two knows the file, too
        write_whole(path, content)
        self.record["files"] = {**self.record["files"], name: checksum(content)}
        self._save()
        return path

    def note(self, **noted: Any) -> None:
        """Note in the list what is to be known of the run."""
        self.record.update(noted)
        self._save()

    def is_intact(self, name: str) -> bool:
        """Whether a file is there as the run wrote it."""
        path = self.path / name
        return path.is_file() and self.record.get("files", {}).get(name) == checksum(path.read_bytes())

    def is_own(self, name: str) -> bool:
        """Whether a file is as the run wrote it, or of a run that ended as it did, or made to be edited."""
        known = self.record.get("files", {}).get(name)
        return self.is_intact(name) or (known is not None and (known == "" or name in self.editable))

    def write_table(self, name: str, table: pd.DataFrame, **options: Any) -> Path:
        """Write a table as CSV, of which no cell is a formula to a spreadsheet."""
        safe = table.rename(index=_harmless, columns=_harmless).map(_harmless)
        return self.write(name, safe.to_csv(**options))

    def locked(self) -> Any:
        """Keep other commands out of the folder inside a ``with`` block."""
        return lock(writable_folder(self.path))

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads((self.path / MANIFEST).read_bytes())
            names = [*dict(record["files"]), *record["fits"]]
            inside = all(isinstance(n, str) and not Path(n).is_absolute() and ".." not in Path(n).parts for n in names)
            inside &= record.pop("sha256") == checksum(json.dumps(record).encode())
        except FileNotFoundError:
            return {}
        except NotADirectoryError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            inside = False
        if not inside:
            raise ValueError(
                f"{str(self.path / MANIFEST)!r}, the list of the run's files, cannot be read: name another folder"
            )
        return dict(record)

    def _save(self) -> None:
        record = {**self.record, "sha256": checksum(json.dumps(self.record).encode())}
        write_whole(self.path / MANIFEST, json.dumps(record, indent=1).encode())


def checksum(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
