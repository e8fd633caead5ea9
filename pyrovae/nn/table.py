"""What an encoder is given of a table's columns."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least, not_a_class, positive, shown
from pyrovae.nn.network import Network, num_features

KINDS = ("continuous", "positive", "count", "binary", "ordinal", "categorical")


class TableInput(NamedTuple):
    """One column: its type, its number of categories (1 for numbers), and whether cells may be missing."""

    kind: str
    size: int = 1
    missing: bool = False

    def width(self, embedding: int | None = None) -> int:
        """Return the number of columns that a network is given for it."""
        if embedding is not None and self.is_embedded(embedding):
            return embedding
        own = {"categorical": self.size, "ordinal": self.size - 1}.get(self.kind, 1)
        return own + self.missing

    def is_embedded(self, embedding: int | None) -> bool:
        """Whether the column has vectors that are learned: categories that are more than a vector has numbers."""
        return self.kind == "categorical" and embedding is not None and embedding < self.size


class Table(Network):
    """Shows a network the columns of a table by their types.

    Categories are one-hot, or vectors that are learned; grades are indicators of each step, x >= 1, ..., x >= L - 1, so
    that their order is seen; counts are log(1 + x); other numbers are as they are. A column whose cells may be missing
    has 0 there, and beside it an indicator of whether it is observed.

    Args:
        network: network that takes as many columns as :meth:`width` says, or a function of that number that makes it.
        inputs: what each column is, as :attr:`pyrovae.data.Table.inputs` lists it: triples of the type, the number of
            categories, and whether cells may be missing.
        exposure: a typical exposure, where the last tensor of a batch is each observation's own, ``[..., 1]``: counts
            are then shown as log(1 + x typical / own), and the network is given log(own / typical) as one more column,
            from which it knows how much they tell.
        embedding: length of the vectors that stand for the categories of a column with more categories than that, one
            of them for a missing cell; None shows all categories one-hot.

    Example:
        >>> from pyrovae import nn
        >>> inputs = [("continuous", 1, True), ("categorical", 3, False), ("count", 1, False)]
        >>> encoder = nn.Table(lambda width: nn.MLP(width, 8), inputs)
        >>> encoder.network.in_features, encoder(torch.tensor([[torch.nan, 2.0, 7.0]])).shape
        (6, torch.Size([1, 8]))
    """

    def __init__(
        self,
        network: Network | nn.Module | Callable[[int], nn.Module],
        inputs: Sequence[Sequence[Any]],
        *,
        exposure: float | None = None,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        not_a_class("network", network)
        self.exposure = None if exposure is None else positive("exposure", exposure)
        if not isinstance(inputs, Sequence) or isinstance(inputs, str) or not inputs:
            raise ValueError(
                f"inputs must list what each column is, as data.Table(...).inputs does, got {shown(inputs)}"
            )
        self.inputs = [_checked(given) for given in inputs]
        self.embedding = None if embedding is None else at_least("embedding", embedding, 1)
        width = self.width(self.inputs, embedding) + (self.exposure is not None)
        if not isinstance(network, nn.Module) and callable(network):
            network = network(width)
        self.out_features = num_features("network", network)
        taken = getattr(network, "in_features", None)
        if isinstance(taken, int) and taken < width:
            raise ValueError(f"network takes {taken} columns, and is given {width} for {len(self.inputs)} inputs")
        self.in_features = len(self.inputs) + (taken - width if isinstance(taken, int) else 0)
        self.network: Any = network
        self.vectors = nn.ModuleDict(
            {
                str(k): nn.Embedding(column.size + column.missing, embedding or 1)
                for k, column in enumerate(self.inputs)
                if column.is_embedded(embedding)
            }
        )

    @staticmethod
    def width(inputs: Sequence[Sequence[Any]], embedding: int | None = None) -> int:
        """Return how many columns a network is given."""
        return sum(_checked(given).width(embedding) for given in inputs)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map columns ``[..., D]`` with NaN, and the network's other inputs, to its features."""
        if x.shape[-1] != len(self.inputs):
            raise ValueError(f"the encoder is made for {len(self.inputs)} columns, got {x.shape[-1]}")
        if self.exposure is None:
            out: Tensor = self.network(self.shown(x), *others)
            return out
        if not others:
            raise ValueError("the encoder is made for an exposure, the last tensor of a batch: pass (x, exposure)")
        scale = others[-1] / self.exposure
        shown = torch.cat([self.shown(x, scale), scale.log().expand(*x.shape[:-1], 1)], dim=-1)
        out = self.network(shown, *others[:-1])
        return out

    def shown(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return what the network is given of columns ``[..., D]``, counts divided by ``scale`` ``[..., 1]``."""
        parts = []
        for k, column in enumerate(self.inputs):
            if str(k) in self.vectors:
                vectors: Any = self.vectors[str(k)]
                codes = x[..., k].nan_to_num(nan=column.size).long()  # a missing cell has the last vector
                known = (codes >= 0) & (codes < vectors.num_embeddings)  # as one-hot, others are zeros
                parts.append(vectors(torch.where(known, codes, 0)) * known[..., None])
            else:
                parts += _shown(x[..., k], column, scale)
        return torch.cat(parts, dim=-1)


def shown_columns(x: Tensor, inputs: Sequence[Sequence[Any]]) -> Tensor:
    """Return columns ``[..., D]`` as a network is shown them, categories one-hot, without a network."""
    return torch.cat(
        [part for k, column in enumerate(inputs) for part in _shown(x[..., k], _checked(column), None)], -1
    )


def _shown(x: Tensor, column: TableInput, scale: Tensor | None) -> list[Tensor]:
    observed = ~x.isnan()
    values = torch.where(observed, x, 0.0)
    if column.kind == "categorical":
        parts = (values[..., None] == torch.arange(column.size, device=x.device)).to(x.dtype) * observed[..., None]
    elif column.kind == "ordinal":
        parts = (values[..., None] > torch.arange(column.size - 1, device=x.device)).to(x.dtype)
    elif column.kind == "count":
        parts = (values if scale is None else values / scale[..., 0]).log1p()[..., None]
    else:
        parts = values[..., None]
    return [parts, observed[..., None].to(x.dtype)] if column.missing else [parts]


def _checked(given: Any) -> TableInput:
    if not isinstance(given, Sequence) or isinstance(given, str) or not 1 <= len(given) <= 3:
        raise ValueError(f"each of inputs must be (type, number of categories, missing), got {shown(given)}")
    column = TableInput(*given)
    if column.kind not in KINDS:
        raise ValueError(f"the type in inputs must be one of {', '.join(KINDS)}, got {shown(column.kind)}")
    least = 2 if column.kind in ("ordinal", "categorical") else 1
    return TableInput(
        column.kind, at_least("the number of categories in inputs", column.size, least), bool(column.missing)
    )
