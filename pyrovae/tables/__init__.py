"""Tables: files and frames in, typed columns, and the way to numbers and back."""

from pyrovae.tables.column import OBSERVABLE, ROLES, SCALINGS, TYPES, Column
from pyrovae.tables.encoding import Encoding, without_codes
from pyrovae.tables.frames import as_frame, is_frame, named_columns
from pyrovae.tables.proposal import levels_of, proposal
from pyrovae.tables.reading import is_table_file, read_file
from pyrovae.tables.scaling import Scaling

__all__ = [
    "OBSERVABLE",
    "ROLES",
    "SCALINGS",
    "TYPES",
    "Column",
    "Encoding",
    "Scaling",
    "as_frame",
    "is_frame",
    "is_table_file",
    "levels_of",
    "named_columns",
    "proposal",
    "read_file",
    "without_codes",
]
