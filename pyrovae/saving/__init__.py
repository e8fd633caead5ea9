"""Files that are either whole or absent, and folders that know which files are their own."""

from pyrovae.saving.files import lock, remove_stale, write_whole
from pyrovae.saving.run_folder import MANIFEST, RunFolder

__all__ = ["MANIFEST", "RunFolder", "lock", "remove_stale", "write_whole"]
