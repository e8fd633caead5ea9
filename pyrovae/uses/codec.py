"""Bits back with a pair: what is pushed on the coder's stack for some observations, and popped from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.diagnostics.predictive.draws import feature_names
from pyrovae.importance.question import Question
from pyrovae.likelihoods.mixed import Columns
from pyrovae.programs.handlers import Repeated
from pyrovae.programs.layout import Layout, Observed
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.streams import numpy_generator
from pyrovae.programs.types import Batch, Program, Trace
from pyrovae.uses.coding import (
    Conditionals,
    Values,
    cells_of,
    conditionals,
    discrete_columns,
    log_masses,
    spread_of,
    values_of_latent,
)

LARGEST_BATCH, AT_ONCE = 64, 2**24  # observations, and probabilities, that are computed at once
SEEN = 1000  # observations that tell where the latents lie
MOST_VALUES = 2**16  # different values of a column
LARGEST_LOG = 500.0  # log density of a value at which a density has no bound
MOST_BY_COLUMN = 100  # columns of a tensor up to which each has its own values in the header
SPARE = 64  # bits on the stack beyond those that a batch is expected to take


@dataclass(frozen=True)
class Cells:
    """Cells of a batch that a site observes.

    Attributes:
        rows: the cells, ``[n, D]``; NaN where they are missing.
        alphabet: values that each column may take, in order, ``[V, D]``.
        coded: which cells are in the code, ``[n, D]``: those that are not missing, and not the same in all rows.
        masses: probabilities of the values of each of those, ``[coded.sum(), V]``.
    """

    rows: Tensor
    alphabet: Tensor
    coded: Tensor
    masses: Tensor


class Stack:
    """An entropy coder, last in and first out, of symbols whose probabilities are given.

    Args:
        coder: coder with the words below.
        family: its family of distributions over a table of probabilities.
    """

    def __init__(self, coder: Any, family: Any) -> None:
        self.coder, self.family = coder, family

    @property
    def bits(self) -> int:
        """Number of bits on the stack."""
        return int(self.coder.num_bits())

    @property
    def words(self) -> np.ndarray:
        """All words on the stack."""
        result: np.ndarray = self.coder.get_compressed()
        return result

    def push(self, symbols: Tensor, masses: Tensor) -> None:
        """Push symbols ``[m]`` of probabilities ``[m, V]``; they are popped in the same order."""
        if len(symbols):
            self.coder.encode_reverse(symbols.numpy().astype(np.int32), self.family, masses.contiguous().numpy())

    def pop(self, masses: Tensor) -> Tensor:
        """Pop symbols of probabilities ``[m, V]``."""
        if not len(masses):
            return torch.zeros(0, dtype=torch.long, device="cpu")
        return torch.from_numpy(self.coder.decode(self.family, masses.contiguous().numpy()).astype(np.int64))

    def push_latent(self, fn: Any, values: Values, symbols: Tensor) -> None:
        """Push a latent's symbols ``[n, D]``, the last coordinate first."""
        given, before = _conditionals(fn, values), _before(values, symbols)
        for k in reversed(range(values.size)):
            if len(values.values) > 1:
                self.push(symbols[:, k], _masses(given, values, k, before[:, :k]))

    def pop_latent(self, fn: Any, values: Values, count: int) -> Tensor:
        """Pop the symbols ``[count, D]`` of a latent."""
        given, symbols = _conditionals(fn, values), torch.zeros(count, values.size, dtype=torch.long, device="cpu")
        for k in range(values.size):
            if len(values.values) > 1:
                symbols[:, k] = self.pop(_masses(given, values, k, _before(values, symbols)[:, :k]))
        return symbols


def _aligned(batch: Batch) -> Batch:
    """Return a batch in memory of its own: a product of matrices may depend on where its numbers lie."""
    return tuple(t.clone(memory_format=torch.contiguous_format) for t in batch)


def _conditionals(fn: Any, values: Values) -> Conditionals:
    given = conditionals(fn, values)
    assert given is not None  # the codec has seen it
    return given


def _before(values: Values, symbols: Tensor) -> Tensor:
    """Return coordinates ``[n, D]``; of one-hot vectors, which are a single one, nothing is asked."""
    return values.values[:, : values.size].gather(0, symbols.to(values.values.device))


def _masses(given: Conditionals, values: Values, k: int, before: Tensor) -> Tensor:
    """Return the probabilities of the values of a coordinate, ``[n, V]``; where none is possible, all alike."""
    logs = (given(k, before) + values.log_width[:, k]).nan_to_num(nan=-torch.inf, posinf=LARGEST_LOG)
    impossible = (logs == -torch.inf).all(-1, keepdim=True)
    return logs.masked_fill(impossible, 0.0).softmax(-1).cpu()


class Codec:
    """A pair as a code of the data that it observes.

    Args:
        question: the pair, and the data or a template of them: missing cells as they are, others with any value.
        header: what decoding knows beside the pair: ``sources`` (positions of the observed tensors), ``alphabets``
            (the values in each source's columns), ``spreads`` (where each latent lies), ``bits``.
    """

    def __init__(self, question: Question, header: dict[str, Any]) -> None:
        self.question, self.header = question, header
        self.pair, layout = question.pair, question.layout
        traces = self.pair.traces(question.data.batch(slice(0, 2)))
        orders = [[name for name, _ in sample_sites(trace) if name in layout.latents] for trace in traces]
        self.model_order, self.guide_order = orders
        nodes, spreads = traces[0].nodes, header["spreads"]
        device = question.data.device
        self.latents = {
            n: values_of_latent(nodes[n]["fn"], spreads[n], header["bits"]).to(device) for n in self.model_order
        }
        self.dtypes = {n: nodes[n]["value"].dtype for n in self.model_order}
        for name in self.model_order:
            for role, trace in zip(("model", "guide"), traces, strict=True):
                if conditionals(trace.nodes[name]["fn"], self.latents[name]) is None:
                    raise ValueError(
                        f"latent site {name!r} of the {role} is a {type(trace.nodes[name]['fn']).__name__}, whose "
                        "coordinates have no densities given those before them: use one of independent, jointly "
                        "Gaussian or mixed Gaussian latents"
                    )
        first = question.data.batch(slice(0, 1))
        self.alphabets = {
            source: _padded(columns, first[source].numel())
            for source, columns in zip(header["sources"], header["alphabets"], strict=True)
        }
        tables = [len(v.values) * v.size for v in self.latents.values()]
        tables += [a.numel() for a, _ in self.alphabets.values()]
        self.largest = max(1, min(LARGEST_BATCH, AT_ONCE // max(tables)))
        self.bits_per_observation = sum(v.size * math.log2(len(v.values)) for v in self.latents.values())

    def encoded(self, coder: Any, seed: int) -> tuple[np.ndarray, list[int]]:
        """Return the words of the code of all data, and the sizes of the batches.

        Args:
            coder: function from words to an entropy coder, and its family of distributions.
            seed: seed of the words below the code, from which the first observation's latents are decoded.
        """
        for factor in (1, 1.5, 2, 3, 4, 8, 16, 64, 256):  # what a batch takes is known by trying
            count = math.ceil(factor * (1.1 * self.bits_per_observation + 2 * SPARE) / 32)
            below = numpy_generator("bits back", seed).integers(1, 2**32, size=count, dtype=np.uint32)
            stack = Stack(*coder(below))
            sizes = self._pushed(stack)
            if sizes is not None:
                return stack.words, sizes
        raise ValueError("the data do not carry as many bits as their latents take to be decoded: lower bits=")

    def _pushed(self, stack: "Stack") -> list[int] | None:
        """Push all data; return the sizes of the batches, or None where there was not enough below them."""
        start, sizes, count = 0, [], len(self.question.data)
        needed = 1.1 * self.bits_per_observation
        with self.question.bar("compress") as bar:
            while start < count:
                affordable = (stack.bits - SPARE) // needed if needed else self.largest
                size = int(min(self.largest, count - start, max(1, affordable)))
                if stack.bits < needed + SPARE or not self._push(
                    stack, self.question.data.batch(slice(start, start + size))
                ):
                    return None
                sizes.append(size)
                start += size
                bar.update(size)
        return sizes

    def _push(self, stack: "Stack", batch: Batch) -> bool:
        """Push a batch; return whether there was enough below it."""
        batch = _aligned(batch)
        values: dict[str, Tensor] = {}
        symbols: dict[str, Tensor] = {}
        for name in self.guide_order:
            fn = self._run(self.pair.guide, batch, values).nodes[name]["fn"]
            symbols[name] = stack.pop_latent(fn, self.latents[name], len(batch[0]))
            values[name] = self._value(name, symbols[name])
        enough = stack.bits >= SPARE / 2
        trace = self._run(self.pair.model, batch, values)
        for site in reversed(self.question.layout.observed):
            self._push_cells(stack, trace, site, batch)
        for name in reversed(self.model_order):
            stack.push_latent(trace.nodes[name]["fn"], self.latents[name], symbols[name])
        return enough

    def decoded(self, coder: Any, words: np.ndarray) -> list[Tensor]:
        """Return the observed tensors of all data, in the form of batches."""
        stack, stop, parts = Stack(*coder(words)), len(self.question.data), []
        with self.question.bar("decompress") as bar:
            for size in reversed(self.header["sizes"]):
                batch = self._pop(stack, self.question.data.batch(slice(stop - size, stop)))
                parts.append([batch[source].cpu() for source in self.header["sources"]])
                stop -= size
                bar.update(size)
        return [torch.cat(rows) for rows in zip(*reversed(parts), strict=True)]

    def _pop(self, stack: "Stack", batch: Batch) -> Batch:
        """Pop a batch, of which the covariates and the places of missing cells are known."""
        batch = _aligned(batch)
        values: dict[str, Tensor] = {}
        symbols: dict[str, Tensor] = {}
        for name in self.model_order:
            fn = self._run(self.pair.model, batch, values).nodes[name]["fn"]
            symbols[name] = stack.pop_latent(fn, self.latents[name], len(batch[0]))
            values[name] = self._value(name, symbols[name])
        trace = self._run(self.pair.model, batch, values)
        for site in self.question.layout.observed:
            batch = self._pop_cells(stack, trace, site, batch)
        batch = _aligned(batch)
        trace = self._run(self.pair.guide, batch, values)
        for name in reversed(self.guide_order):
            stack.push_latent(trace.nodes[name]["fn"], self.latents[name], symbols[name])
        return batch

    def _run(self, program: Program, batch: Batch, values: Mapping[str, Tensor]) -> Trace:
        with Repeated(), pyro.validation_enabled(False):
            return poutine.trace(poutine.condition(program, data=dict(values))).get_trace(*batch)

    def _value(self, name: str, symbols: Tensor) -> Tensor:
        return self.latents[name].chosen(symbols.to(self.latents[name].values.device)).to(self.dtypes[name])

    def _cells(self, trace: Trace, site: Observed, batch: Batch) -> "Cells":
        """Return the cells of a batch that an observed site reads, and the probabilities of their values."""
        reading = site.required_reading()
        rows = reading.of(batch).reshape(len(batch[0]), -1)
        alphabet, sizes = self.alphabets[reading.source]
        columns = (
            torch.arange(rows.shape[1], device="cpu") if reading.columns is None else reading.columns.flatten().cpu()
        )
        own, own_sizes = alphabet[:, columns.clamp(min=0)], sizes[columns.clamp(min=0)]
        masses = log_masses(cells_of(trace.nodes[site.name]["fn"]), own.to(rows.device))
        beyond = torch.arange(len(own), device="cpu")[None, :] >= own_sizes[:, None]
        masses = masses.cpu().nan_to_num(nan=-torch.inf).masked_fill(beyond, -torch.inf)
        coded = ~rows.isnan().cpu() & (columns >= 0) & (own_sizes > 1)
        return Cells(rows, own, coded, masses[coded].softmax(-1))

    def _push_cells(self, stack: "Stack", trace: Trace, site: Observed, batch: Batch) -> None:
        cells = self._cells(trace, site, batch)
        symbols = torch.searchsorted(cells.alphabet.T.contiguous(), cells.rows.T.contiguous().cpu().double()).T
        stack.push(symbols[cells.coded], cells.masses)

    def _pop_cells(self, stack: "Stack", trace: Trace, site: Observed, batch: Batch) -> Batch:
        cells = self._cells(trace, site, batch)
        symbols = torch.zeros(cells.rows.shape, dtype=torch.long, device="cpu")
        symbols[cells.coded] = stack.pop(cells.masses)
        values = cells.alphabet.gather(0, symbols).to(cells.rows)
        reading = site.required_reading()
        values = torch.where(cells.rows.isnan(), cells.rows, values).reshape(reading.of(batch).shape)
        return reading.into(batch, values)


def made_for(question: Question, bits: int) -> Codec:
    """Return the codec of a pair for the data of a question.

    Raises:
        ValueError: for a pair or data that no such code is for.
    """
    layout, data = question.layout, question.data
    _require(layout)
    traces = question.pair.traces(data.batch(slice(0, 2)))
    _require_cells(question, traces[0])
    sources = sorted({site.required_reading().source for site in layout.observed})
    for source in sources:
        _require_whole(question, source)
    header = {
        "sources": sources, "bits": bits, "sizes": [],
        "alphabets": [_alphabet(question, source, _mixed(question, traces[0], source)) for source in sources],
        "spreads": _spreads(question),
    }  # fmt: skip
    return Codec(question, header)


def _require(layout: Layout) -> None:
    """Refuse a pair whose densities are not products of those of its local latents and data.

    Raises:
        ValueError: saying what is in the way.
    """
    layout.require_latents()
    others = {
        "is shared by all data": layout.global_latents, "is auxiliary": layout.auxiliary,
        "is not sampled by the guide": layout.unguided,
    }  # fmt: skip
    for what, names in others.items():
        if names:
            raise ValueError(f"latent site {names[0]!r} {what}, so that it cannot be in the code: use another pair")
    if layout.feeds_back:
        raise ValueError(
            "the model computes with the data that it observes, which are not known while they are decoded"
        )
    for site in layout.observed:
        site.required_reading()


def _require_cells(question: Question, trace: Trace) -> None:
    """Refuse what has no probability for each cell by itself.

    Raises:
        ValueError: naming the site.
    """
    for site in question.layout.observed:
        fn = trace.nodes[site.name]["fn"]
        if len(fn.batch_shape) != 1 or cells_of(fn) is None:
            raise ValueError(
                f"observed site {site.name!r} is {_described(question, site, fn)}: only discrete data whose cells are "
                "independent given the latents can be compressed"
            )
    for name in question.layout.latents:
        if len(trace.nodes[name]["fn"].batch_shape) != 1:
            raise ValueError(f"latent site {name!r} is inside a second plate: write it as one vector, .to_event(...)")


def _described(question: Question, site: Observed, fn: Any) -> str:
    """Return what a distribution is, naming a column that is not discrete."""
    kind, columns = f"a {type(fn).__name__}", discrete_columns(fn)
    if columns is None or all(columns):
        return f"{kind} with dependent cells" if fn.support.is_discrete else f"{kind} of values that are not discrete"
    number = columns.index(False)
    names = feature_names(question, site.name)
    return f"of columns that are not discrete, the first of them {repr(names[number]) if names else number}"


def _require_whole(question: Question, source: int) -> None:
    """Refuse a tensor of which the model observes a part, since the rest would be lost.

    Raises:
        ValueError: saying so.
    """
    readings = [s.required_reading() for s in question.layout.observed if s.required_reading().source == source]
    if any(reading.columns is None for reading in readings):
        return
    cells = question.data.batch(slice(0, 1))[source].numel()
    observed = torch.cat([reading.columns.flatten().cpu() for reading in readings])  # type: ignore[union-attr]
    if len(observed[observed >= 0].unique()) < cells:
        raise ValueError(
            f"the model observes some columns of {question.data.name_of(source)} only: the rest would be lost"
        )


def _mixed(question: Question, trace: Trace, source: int) -> bool:
    """Whether the columns of a tensor may have supports of their own, or are few."""
    sites = [s.name for s in question.layout.observed if s.required_reading().source == source]
    few = question.data.batch(slice(0, 1))[source].numel() <= MOST_BY_COLUMN
    return few or len(sites) > 1 or any(isinstance(cells_of(trace.nodes[name]["fn"]), Columns) for name in sites)


def _alphabet(question: Question, source: int, by_column: bool) -> list[list[float]]:
    """Return the values in each column of a tensor, or, in a single list, in all columns.

    Raises:
        ValueError: for more values than a code takes.
    """
    seen: list[Tensor] = []
    for _, batch in question.data.batches(4096):
        rows = batch[source].reshape(len(batch[source]), -1).cpu().double()
        parts = list(rows.T) if by_column else [rows.flatten()]
        seen = seen or [torch.zeros(0, dtype=torch.float64, device="cpu") for _ in parts]
        seen = [torch.cat([old, new[~new.isnan()]]).unique() for old, new in zip(seen, parts, strict=True)]
        if max(map(len, seen)) > MOST_VALUES:
            raise ValueError(f"{question.data.name_of(source)} has more than {MOST_VALUES} different values")
    return [values.tolist() for values in seen]


def _padded(columns: list[list[float]], width: int) -> tuple[Tensor, Tensor]:
    """Return the values of all columns, ``[V, D]``, the last one repeated, and the numbers of them, ``[D]``."""
    columns = columns * width if len(columns) == 1 else columns
    longest = max(1, *map(len, columns))
    rows = [column + [column[-1] if column else 0.0] * (longest - len(column)) for column in columns]
    return torch.tensor(rows, dtype=torch.float64, device="cpu").T, torch.tensor(list(map(len, columns)), device="cpu")


def _spreads(question: Question) -> dict[str, Any]:
    """Return where each latent lies, from draws of the guide for some data."""
    count = len(question.data)
    rows = torch.linspace(0, count - 1, min(SEEN, count), device="cpu").round().long()
    batch = question.data.batch(rows.to(question.data.device))
    with Repeated():
        model_trace, guide_trace = question.pair.traces(batch)
    return {
        name: spread_of(model_trace.nodes[name]["fn"], guide_trace.nodes[name]["value"])
        for name in question.layout.latents
    }
