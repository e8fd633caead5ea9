"""Handwritten digits that come with scikit-learn: 1797 pictures of 8 by 8 pixels, no download."""

import torch

from pyrovae.data.binarisation import Binarisation
from pyrovae.data.data import Data
from pyrovae.programs.isolation import importing


class Digits(Data):
    """scikit-learn's digits, intensities in [0, 1], with labels 0 to 9.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Args:
        binarise: how intensities become bits; None leaves them as they are.
    """

    def __init__(self, *, binarise: Binarisation | None = None) -> None:
        with importing():
            from sklearn.datasets import load_digits
        bunch = load_digits()
        super().__init__(
            torch.from_numpy(bunch.data).to(torch.uint8),
            image_shape=(1, 8, 8),
            labels=torch.from_numpy(bunch.target),
            levels=16,
            binarise=binarise,
        )
