"""MNIST and Fashion-MNIST, from files in torchvision's layout."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data, Splits
from pyrovae.data.splitting import is_share

PARTS = {"train": 60_000, "t10k": 10_000}  # the published split
PICTURES, LABELS = 2051, 2049  # the first numbers of idx files of pictures and of labels


def data_root(root: str | Path | None) -> Path:
    """Return ``root``, or else the folder that PYROVAE_DATA names, or else ``data``."""
    return Path(root if root is not None else os.environ.get("PYROVAE_DATA", "data"))


class MNIST(Data):
    """70,000 pictures of handwritten digits, 28 by 28 pixels: 60,000 for training, the last 10,000 for testing.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.

    Args:
        root: folder that holds ``MNIST/raw`` in torchvision's layout, compressed or not; by default PYROVAE_DATA.
        binarise: how intensities become bits; None leaves them as they are.
        download: whether torchvision downloads the files into ``root`` when they are missing.

    Raises:
        ValueError: for files that are missing, damaged, or not the published ones by their headers and lengths.
    """

    folder: ClassVar[str] = "MNIST"
    num_test: ClassVar[int] = PARTS["t10k"]

    def __init__(
        self, *, root: str | Path | None = None, binarise: Binarisation | None = None, download: bool = False
    ) -> None:
        raw = data_root(root) / self.folder / "raw"
        if download:
            self._download(data_root(root))
        images = [_read(raw, f"{part}-images-idx3-ubyte", PICTURES, (size, 28, 28)) for part, size in PARTS.items()]
        labels = torch.cat([_labels(raw / f"{part}-labels-idx1-ubyte", (size,)) for part, size in PARTS.items()])
        super().__init__(
            torch.cat(images).flatten(1),
            image_shape=(1, 28, 28),
            labels=labels.long(),
            levels=255,
            binarise=binarise,
        )

    def splits(self, *, validation: float = 1 / 6, test: float | None = None, seed: int = 0, **keys: Any) -> Splits:
        """Split the training pictures at random; the test set is the published one.

        Args:
            validation: share of the 60,000 training pictures for validation (by default 10,000 pictures).
            test: must be None: the test set is the whole published one.
            seed: seed of the permutation.
            **keys: must all be None: the parts are drawn at random.
        """
        if any(key is not None for key in keys.values()):
            raise ValueError(f"{type(self).__name__} has a published test set, and is not split by {', '.join(keys)}")
        if test is not None or not is_share(validation):
            raise ValueError(
                f"a validation share in [0, 1) and test=None (the published test set) were expected, got {validation} "
                f"and {test}"
            )
        num_train = len(self) - self.num_test
        order = torch.randperm(num_train, generator=torch.Generator().manual_seed(seed), device="cpu")
        order = torch.cat([order, torch.arange(num_train, len(self), device="cpu")])
        num_validation = round(validation * num_train)
        return self._in_parts(*order.split([num_train - num_validation, num_validation, self.num_test]))

    def folds(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse a cross-validation, which would train on the published test set."""
        raise ValueError(f"{type(self).__name__} has a published test set, and is not split into folds")

    def _download(self, root: Path) -> None:
        from torchvision import datasets

        try:
            getattr(datasets, self.folder)(str(root), download=True)
        except (RuntimeError, OSError) as error:  # no server answers
            raise ValueError(f"{self.folder} cannot be downloaded: {' '.join(str(error).split())}") from None


class FashionMNIST(MNIST):
    """70,000 pictures of articles of clothing, 28 by 28 pixels: 60,000 for training, the last 10,000 for testing.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.

    Args:
        root: folder that holds ``FashionMNIST/raw`` in torchvision's layout; by default PYROVAE_DATA.
        binarise: how intensities become bits; None leaves them as they are.
        download: whether torchvision downloads the files into ``root`` when they are missing.
    """

    folder: ClassVar[str] = "FashionMNIST"


def _labels(file: Path, shape: tuple[int]) -> Tensor:
    labels = _read(file.parent, file.name, LABELS, shape)
    if int(labels.max()) > 9:
        raise ValueError(f"{str(file)!r} holds the label {int(labels.max())}, and labels are 0 to 9: it is damaged")
    return labels


def _read(raw: Path, name: str, magic: int, shape: tuple[int, ...]) -> Tensor:
    """Return the bytes of an idx file, compressed or not, whose header must state ``shape``.

    Raises:
        ValueError: naming the file, what it holds and what was expected.
    """
    file = raw / name if (raw / name).exists() else raw / f"{name}.gz"
    header = np.array([magic, *shape], ">u4")
    size = header.nbytes + math.prod(shape)
    content = _content(file, size + 1)
    start = np.frombuffer(content[: min(len(content) // 4 * 4, header.nbytes)], ">u4")
    if not np.array_equal(start, header):
        raise ValueError(
            f"{str(file)!r} begins with {start.tolist()}, and {header.tolist()} were expected, the number of its kind "
            "and the shape of the published file: name the data root that holds that, or ask for the download"
        )
    if len(content) != size:
        got = f"{len(content)} bytes" if len(content) < size else "more"
        raise ValueError(f"{str(file)!r} holds {got}, and {size} were expected by its header: it is damaged")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header.nbytes).copy()).reshape(shape)


def _content(file: Path, limit: int) -> bytes:
    """Return the content of a file, unpacked, at most its first ``limit`` bytes."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            return stream.read(limit)
    except FileNotFoundError:
        raise ValueError(
            f"no file {file.stem!r} (or {file.stem}.gz) in {str(file.parent)!r}: name the data root that holds it, or "
            "ask for the download"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{str(file)!r} cannot be read, so it may be damaged: {error}") from None
