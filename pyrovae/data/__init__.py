"""Data sets, with an explicit binarisation protocol and seeded splits."""

from pyrovae.data.binarisation import Binarisation, Dynamic, Static
from pyrovae.data.conversion import as_data, attach, carried, training_data
from pyrovae.data.data import Data, Splits
from pyrovae.data.digits import Digits
from pyrovae.data.documents import Documents
from pyrovae.data.field import Field
from pyrovae.data.files import CSV, Array
from pyrovae.data.folder import Folder
from pyrovae.data.mnist import MNIST, FashionMNIST, data_root
from pyrovae.data.sprites import DSprites, Sprites
from pyrovae.data.stream import Stream
from pyrovae.data.table import Table, describe

__all__ = [
    "CSV",
    "MNIST",
    "Array",
    "Binarisation",
    "DSprites",
    "Data",
    "Digits",
    "Documents",
    "Dynamic",
    "FashionMNIST",
    "Field",
    "Folder",
    "Splits",
    "Sprites",
    "Static",
    "Stream",
    "Table",
    "as_data",
    "attach",
    "carried",
    "data_root",
    "describe",
    "training_data",
]
