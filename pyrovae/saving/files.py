"""Writing a file so that it is, at any moment, the old one or the new one; one writer at a time in a folder."""

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

PATIENCE = 1.0  # seconds in which a writer that is about to end may do so
_SUFFIX = ".writing"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, whose name nobody knows before, onto the disk.

    Raises:
        ValueError: when it cannot be written; a file that was there before is as it was.
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
        kept = "; what was saved there before is kept" if path.is_file() else ""
        raise ValueError(f"cannot write {str(path)!r} ({error.strerror}){kept}") from None


def remove_stale(folder: Path, names: str) -> None:
    """Remove what writers that were killed have left of files that match ``names``, a pattern; a lock must be held."""
    for path in folder.glob(f".{names}.{'[0-9a-f]' * 16}{_SUFFIX}"):
        with suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder inside the block; a process that dies lets go.

    The folder itself is locked, so that no file is left in it; where the system has no such locks (Windows), none is.

    Raises:
        ValueError: when another holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _acquire(descriptor, folder)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


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
    """Ask for a folder's new entries to be on the disk; the file is in its place, whatever comes of it."""
    with suppress(OSError):  # as where folders cannot be opened (Windows)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
