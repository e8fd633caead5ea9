"""A folder that a command writes: it keeps a list of the files that are its own, and touches no others."""

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
        path: path of the folder, which :meth:`begin` creates.

    Raises:
        ValueError: for an empty path, and for a list that cannot be read.
    """

    editable = ("config.yaml",)  # a run can be started again from it, with changes

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
        """Check that a command can write here; nothing is created.

        Args:
            names: names of the files that the command will write.
            inputs: files that the command reads.

        Raises:
            ValueError: when the folder is a file or holds what no command wrote, or when an input would be overwritten.
        """
        names, inputs = list(names), list(inputs)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"cannot write into the folder {str(self.path)!r} (it is a file): name another")
        strangers = [p.name for p in self.path.iterdir() if p.name[0] != "."] if self.path.is_dir() else []
        if strangers and not self.exists:
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty ({sorted(strangers)[0]!r}) and is not of a run: name a "
                "new or empty folder for the results"
            )
        outputs = {(self.path / name).resolve() for name in names}
        for path in inputs:
            if path.resolve() in outputs:
                raise ValueError(f"{str(path)!r} would be read and written over: name another folder for the results")
        for name in names:
            if (self.path / name).exists() and not self.is_own(name):
                what = "was changed since this run wrote it" if name in self.files else "is not of this run"
                raise ValueError(
                    f"{str(self.path / name)!r} {what} and would be written over: move it, or name another folder for "
                    "the results"
                )

    def begin(self, **notes: Any) -> None:
        """Create the folder, and note facts about the run in its list."""
        writable_folder(self.path)
        remove_stale(self.path, "*")
        self.record.pop("instead", None)  # of a run that was refused
        self.record = {"files": {}, "fits": [], **self.record, **notes}
        self._save()

    def clear(self) -> None:
        """Remove the files of the list, and no others; fits are removed by the code that knows their parts."""
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
        """Write a file of the run's own, which is either whole or absent.

        Raises:
            ValueError: when it cannot be written, or would take the place of a file that the run did not write.
        """
        self.check([name])
        content = content.encode() if isinstance(content, str) else content
        path = self.path / name
        writable_folder(path.parent)
        self.record["files"] = {**self.record["files"], name: ""}
        self._save()  # so that the list has the file even if the run ends before the file is whole
        write_whole(path, content)
        self.record["files"] = {**self.record["files"], name: checksum(content)}
        self._save()
        return path

    def note(self, **notes: Any) -> None:
        """Note facts about the run in the list."""
        self.record.update(notes)
        self._save()

    def is_intact(self, name: str) -> bool:
        """Whether a file is there as the run wrote it."""
        path = self.path / name
        return path.is_file() and self.record.get("files", {}).get(name) == checksum(path.read_bytes())

    def is_own(self, name: str) -> bool:
        """Whether a file is as the run wrote it, or the run ended while it wrote the file, or users may edit it."""
        digest = self.record.get("files", {}).get(name)
        return self.is_intact(name) or (digest is not None and (digest == "" or name in self.editable))

    def write_table(self, name: str, table: pd.DataFrame, **options: Any) -> Path:
        """Write a table as CSV in which no cell is a formula for a spreadsheet."""
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
