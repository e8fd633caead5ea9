"""Writing a file so that at any moment it is either the old one or the new one; one writer at a time in a folder."""

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 1.0  # seconds to wait for a writer that is about to end
_SUFFIX = ".writing"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file onto the disk, through a temporary file beside it whose name nobody can know in advance.

    Raises:
        ValueError: when it cannot be written; a file that was there before stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # follows no link
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _on_the_disk(path.parent)
    except OSError as error:
        note = "; what was saved there before is kept" if path.is_file() else ""
        raise ValueError(f"cannot write {str(path)!r} ({error.strerror}){note}") from None


def remove_stale(folder: Path, names: str) -> None:
    """Remove what killed writers left of files that match the pattern ``names``; the caller must hold the lock."""
    for path in folder.glob(f".{names}.{'[0-9a-f]' * 16}{_SUFFIX}"):
        with suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder inside the block; a process that dies releases the lock.

    The folder itself is locked, so that no lock file is left in it. Nothing is locked where the system has no such
    locks (Windows).

    Raises:
        ValueError: when another writer holds the lock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _acquire(descriptor, folder)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _acquire(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"another process or thread writes into {str(folder)!r} at this moment: wait for it, or name "
                    "another folder"
                ) from None
            time.sleep(0.05)
        except OSError:  # a file system without locks
            return


def _on_the_disk(folder: Path) -> None:
    """Ask the system to write a folder's new entries to the disk; the file is in its place even if this fails."""
    with suppress(OSError):  # for example where folders cannot be opened (Windows)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
