"""Pictures with known factors: a generator of sprites, and the dSprites file."""

import itertools
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data

SHAPES = ("square", "ellipse", "heart")
FINE = 4  # number of points along a pixel's side


class Sprites(Data):
    """Every combination of shape, scale, orientation, x and y of one white sprite on black, no download.

    The set is like dSprites, but smaller. Orientations stay within a quarter turn, so that no two of them look alike.
    ``factors`` holds the level of each factor, ``[N, 5]``, in the order of ``factor_names``.

    Source: of the idea, Matthey, Higgins, Hassabis and Lerchner, "dSprites: disentanglement testing sprites dataset",
    2017.

    Args:
        size: number of pixels along a side.
        shapes: shapes, some of ``square``, ``ellipse`` and ``heart``.
        scales: number of sizes.
        orientations: number of angles.
        positions: number of places along each side.
        binarise: how intensities become bits; None leaves them as they are.

    Example:
        >>> sprites = Sprites(size=16, scales=2, orientations=3, positions=4)
        >>> len(sprites), sprites.image_shape, sprites.factor_names
        (288, (1, 16, 16), ['shape', 'scale', 'orientation', 'x', 'y'])
    """

    def __init__(
        self,
        *,
        size: int = 16,
        shapes: Sequence[str] = SHAPES,
        scales: int = 3,
        orientations: int = 4,
        positions: int = 6,
        binarise: Binarisation | None = None,
    ) -> None:
        at_least("size", size, 8)
        for name, value in (("scales", scales), ("orientations", orientations), ("positions", positions)):
            at_least(name, value, 1)
        unknown = [shape for shape in shapes if shape not in SHAPES]
        if unknown or not shapes:
            raise ValueError(f"shapes must be some of {list(SHAPES)}, got {list(shapes)}")
        levels = [range(len(shapes)), range(scales), range(orientations), range(positions), range(positions)]
        factors = torch.tensor(list(itertools.product(*levels)), device="cpu")
        places = np.linspace(-0.45, 0.45, positions) if positions > 1 else np.zeros(1)
        sizes = np.linspace(0.3, 0.5, scales) if scales > 1 else np.array([0.4])
        angles = np.arange(orientations) / orientations * math.pi / 2
        pictures = [
            _picture(size, shapes[shape], sizes[scale], angles[angle], places[x], places[y])
            for shape, scale, angle, x, y in factors.tolist()
        ]
        super().__init__(
            torch.from_numpy(np.stack(pictures)).reshape(len(pictures), -1),
            image_shape=(1, size, size),
            levels=255,
            binarise=binarise,
            factors=factors,
            factor_names=["shape", "scale", "orientation", "x", "y"],
        )


def _picture(size: int, shape: str, scale: float, angle: float, x: float, y: float) -> np.ndarray:
    """Return one picture; each pixel is the share of its area that the sprite covers."""
    axis = (np.arange(size * FINE) + 0.5) / (size * FINE) * 2 - 1
    across, down = np.meshgrid(axis - x, axis - y)
    u = (math.cos(angle) * across + math.sin(angle) * down) / scale
    v = (-math.sin(angle) * across + math.cos(angle) * down) / scale
    inside = {
        "square": lambda: np.maximum(abs(u), abs(v)) <= 0.75,
        "ellipse": lambda: u**2 + (2 * v) ** 2 <= 1,
        "heart": lambda: (
            ((1.25 * u) ** 2 + (1.25 * v - 0.2) ** 2 - 1) ** 3 + (1.25 * u) ** 2 * (1.25 * v - 0.2) ** 3 <= 0
        ),
    }[shape]()
    share = inside.reshape(size, FINE, size, FINE).mean((1, 3))
    return np.asarray((255 * share).round().astype(np.uint8))


class DSprites(Data):
    """The dSprites file: 737,280 binary pictures of 64 by 64, with their factors.

    Colour does not vary, so ``factors`` holds only shape, scale, orientation, x and y.

    Source: Matthey, Higgins, Hassabis and Lerchner, "dSprites: disentanglement testing sprites dataset", 2017;
    https://github.com/google-deepmind/dsprites-dataset.

    Args:
        path: path of ``dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz``.
        num_data: number of pictures to take at random; None takes all, which need 3 GB of memory.
        seed: seed of that choice.

    Raises:
        ValueError: for a file that does not exist or has another layout.
    """

    def __init__(self, *, path: str, num_data: int | None = None, seed: int = 0) -> None:
        file = Path(path)
        if not file.is_file():
            raise ValueError(f"there is no file {str(file)!r}: download dSprites, and name its .npz file")
        pictures, classes = _read(file)
        if pictures.ndim != 3 or classes.shape != (len(pictures), 6):
            raise ValueError(
                f"imgs and latents_classes have shapes {pictures.shape} and {classes.shape}, not dSprites'"
            )
        rows = _chosen(len(pictures), num_data, seed)
        super().__init__(
            torch.from_numpy(pictures[rows].reshape(len(rows), -1)),
            image_shape=(1, *pictures.shape[1:]),
            levels=1,
            factors=torch.from_numpy(classes[rows][:, 1:].astype(np.int64)),
            factor_names=["shape", "scale", "orientation", "x", "y"],
        )


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures and the levels of their factors.

    Raises:
        ValueError: for a file that is damaged, is not a ``.npz`` file, or has other contents.
    """
    try:
        with zipfile.ZipFile(file):
            pass
        with np.load(file, allow_pickle=False) as archive:
            names = archive.files
            if {"imgs", "latents_classes"} <= set(names):
                return archive["imgs"], archive["latents_classes"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise ValueError(
            f"{str(file)!r} is no .npz file of numbers, or a damaged one: download dSprites again"
        ) from None
    raise ValueError(f"{str(file)!r} does not hold imgs and latents_classes, as dSprites does: {names}")


def _chosen(count: int, num_data: int | None, seed: int) -> Tensor:
    if num_data is None:
        return torch.arange(count, device="cpu")
    if at_least("num_data", num_data, 1) > count:
        raise ValueError(f"num_data is {num_data}, but the file holds {count}")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")[:num_data].sort().values
