"""Files that are whole or not there, and folders that know which files are theirs."""

from pyrovae.saving.files import lock, remove_stale, write_whole
from pyrovae.saving.run_folder import MANIFEST, RunFolder

__all__ = ["MANIFEST", "RunFolder", "lock", "remove_stale", "write_whole"]
