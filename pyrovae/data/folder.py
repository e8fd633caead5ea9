"""A folder of pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Folder(Data):
    """Pictures of a folder, grey levels or colours between 0 and 1; folders inside it are the classes.

    Every picture is named by its path inside the folder, which is the index of results.

    Args:
        path: the folder; its pictures are read in the order of their paths.
        size: (rows, columns) that every picture is resized to; None expects all to have one size.
        colour: "grey", or "rgb"; None takes grey where all pictures are grey, and "rgb" otherwise.
        binarise: how intensities become bits; None leaves them as they are.

    Raises:
        ValueError: for a folder without pictures, for pictures of several sizes where no size is given, and for files
            that cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int] | None = None,
        colour: Literal["grey", "rgb"] | None = None,
        binarise: Binarisation | None = None,
    ) -> None:
        folder = _folder(path)
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not files:
            raise ValueError(f"{str(path)!r} holds no picture ({', '.join(ENDINGS)})")
        if colour not in (None, "grey", "rgb"):
            raise ValueError(f"colour must be 'grey', 'rgb' or None, got {colour!r}")
        colour = colour or _colour(files)
        pictures = np.stack([_read(file, size, colour) for file in _of_one_size(files, size)])
        channels = pictures.transpose(0, 3, 1, 2)
        classes = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in files]
        names = sorted(set(classes))
        labels = torch.tensor([names.index(name) for name in classes]) if len(names) > 1 else None
        super().__init__(
            torch.from_numpy(np.ascontiguousarray(channels)).flatten(1),
            image_shape=(channels.shape[1], channels.shape[2], channels.shape[3]),
            labels=labels,
            label_names=names if labels is not None else None,
            levels=255,
            binarise=binarise,
            row_names=[str(file.relative_to(folder)) for file in files],
        )
        self.path = folder


def _folder(path: str | Path) -> Path:
    if not isinstance(path, str | os.PathLike) or not Path(path).is_dir():
        raise ValueError(f"the path of a folder was expected, got {str(path)!r}")
    return Path(path)


def _colour(files: Sequence[Path]) -> Literal["grey", "rgb"]:
    """Return "grey" where all pictures are grey."""
    for file in files:
        with _opened(file) as picture:
            if picture.mode not in ("1", "L", "LA", "I", "I;16", "F"):
                return "rgb"
    return "grey"


def _of_one_size(files: Sequence[Path], size: tuple[int, int] | None) -> Sequence[Path]:
    """Return the files, after a check that their pictures have one size where none is asked for."""
    if size is not None:
        return files
    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        with _opened(file) as picture:
            sizes.setdefault(picture.size, file)
    if len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise ValueError(
            f"the pictures have several sizes: {first.name!r} is {one[1]} by {one[0]} (rows by columns), "
            f"{second.name!r} {two[1]} by {two[0]}: say size=(rows, columns), to which all are resized"
        )
    return files


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"cannot read a picture from {str(file)!r}: {' '.join(str(error).split())}") from None


def _read(file: Path, size: tuple[int, int] | None, colour: str) -> np.ndarray:
    with _opened(file) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
            raise ValueError(
                f"{str(file)!r} has more than 8 bits per pixel, which would be cut off: save it with 8, or read the "
                "pictures into an array, data.Array(path, levels=65535)"
            )
        try:
            converted = picture.convert("L" if colour == "grey" else "RGB")
        except (OSError, SyntaxError) as error:  # a picture that ends early, or is damaged
            raise ValueError(f"cannot read a picture from {str(file)!r}: {error}") from None
        if size is not None:
            converted = converted.resize((size[1], size[0]))
        pixels = np.asarray(converted, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
