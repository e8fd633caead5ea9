"""MNIST and Fashion-MNIST, from files in torchvision's layout."""

import gzip
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data, Splits


def data_root(root: str | Path | None) -> Path:
    """Return ``root``, or else the folder that PYROVAE_DATA names, or else ``data``."""
    return Path(root if root is not None else os.environ.get("PYROVAE_DATA", "data"))


class MNIST(Data):
    """70,000 pictures of 28 by 28 handwritten digits: 60,000 to train, the last 10,000 to test.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.

    Args:
        root: folder that holds ``MNIST/raw`` as torchvision lays it out, compressed or not; by default PYROVAE_DATA.
        binarise: how intensities become bits; None leaves them as they are.
        download: let torchvision fetch the files into ``root`` when they are missing.
    """

    folder: ClassVar[str] = "MNIST"
    num_test: ClassVar[int] = 10_000

    def __init__(
        self, *, root: str | Path | None = None, binarise: Binarisation | None = None, download: bool = False
    ) -> None:
        raw = data_root(root) / self.folder / "raw"
        if download:
            self._download(data_root(root))
        images = torch.cat([_read(raw, f"{part}-images-idx3-ubyte", 16) for part in ("train", "t10k")])
        labels = torch.cat([_read(raw, f"{part}-labels-idx1-ubyte", 8) for part in ("train", "t10k")])
        super().__init__(
            images.reshape(-1, 784),
            image_shape=(1, 28, 28),
            labels=labels.long(),
            levels=255,
            binarise=binarise,
        )

    def splits(self, *, validation: float = 1 / 6, test: float | None = None, seed: int = 0) -> Splits:
        """Split the training pictures at random; the test set is the published one.

        Args:
            validation: share of the 60,000 training pictures for validation (10,000 by default).
            test: None; the published test set is taken whole.
            seed: of the permutation.
        """
        if test is not None or not 0 <= validation < 1:
            raise ValueError(
                f"a validation share in [0, 1) and test=None (the published test set) were expected, got {validation} "
                f"and {test}"
            )
        num_train = len(self) - self.num_test
        order = torch.randperm(num_train, generator=torch.Generator().manual_seed(seed), device="cpu")
        order = torch.cat([order, torch.arange(num_train, len(self), device="cpu")])
        return self._parts(order, round(validation * num_train), self.num_test)

    def _download(self, root: Path) -> None:
        from torchvision import datasets

        try:
            getattr(datasets, self.folder)(str(root), download=True)
        except (RuntimeError, OSError) as error:  # no server answers
            raise ValueError(f"{self.folder} cannot be downloaded: {' '.join(str(error).split())}") from None


class FashionMNIST(MNIST):
    """70,000 pictures of 28 by 28 articles of clothing: 60,000 to train, the last 10,000 to test.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.

    Args:
        root: folder that holds ``FashionMNIST/raw`` as torchvision lays it out; by default PYROVAE_DATA.
        binarise: how intensities become bits; None leaves them as they are.
        download: let torchvision fetch the files into ``root`` when they are missing.
    """

    folder: ClassVar[str] = "FashionMNIST"


def _read(raw: Path, name: str, header: int) -> Tensor:
    plain, packed = raw / name, raw / f"{name}.gz"
    try:
        content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"no file {name!r} (or {name}.gz) in {str(raw)!r}: name the data root that holds it, or ask for "
            "the download"
        ) from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{str(packed)!r} cannot be read: {error}") from None
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).reshape(
        -1, 784 if header == 16 else 1
    )[:, slice(None) if header == 16 else 0]
