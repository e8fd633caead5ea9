"""Lossless compression of discrete data by a pair: bits back with asymmetric numeral systems."""

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.checks import at_least, flag
from pyrovae.data import Data, Field, as_data
from pyrovae.data.columns import Columns
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.importance.question import ask
from pyrovae.programs.isolation import default_device, importing
from pyrovae.programs.types import Program
from pyrovae.uses.codec import Codec, made_for
from pyrovae.uses.values import with_holes

MAGIC = b"pyrovae\x01"
HEADER = (
    "num_tensors",
    "sources",
    "shapes",
    "stored",
    "missing",
    "alphabets",
    "spreads",
    "bits",
    "sizes",
    "device",
    "check",
)
FEWEST_BITS, MOST_BITS = 4, 16


class Compressed(bytes):
    """The code of data, as bytes that also say how long they are for each observation.

    Attributes:
        num_data: number of observations.
    """

    num_data: int

    @property
    def nats(self) -> float:
        """Length in nats per observation, to be compared with minus the ELBO."""
        return len(self) * 8 * math.log(2) / self.num_data


@shared_keywords()
def compress(
    model: Program, guide: Program, data: Any, *, bits: int = 12, verify: bool = True, **options: Unpack[Options]
) -> Compressed:
    """Compress discrete data without loss: about minus the ELBO per observation.

    Bits back: for some observations at a time, latents are decoded from the code so far by q(z | x), then x is encoded
    by p(x | z), and z by p(z). What decoding took is what encoding z gave back, so that the length is, on average,
    minus the ELBO. In addition there are the bits of the first observation's latents and a header, some 150 bytes: the
    different values of the data (of each column, up to 100 of them), where the latents lie, sizes, and checksums.
    Continuous latents are rounded to the quantiles of a wide distribution around the codes.

    What is compressed is decompressed with the same pair, on the same kind of device, with the same versions and
    number of threads: the coder needs the same probabilities to the bit.

    Source: Townsend, Bird and Barber, "Practical lossless compression with latent variables using bits back coding",
    2019; Frey and Hinton, "Efficient stochastic source coding and an application to a Bayesian network source model",
    1997.

    Args:
        model: generative program ``model(*batch)`` of discrete data whose cells are independent given the latents.
        guide: recognition program ``guide(*batch)``, whose latents are independent, jointly Gaussian, or a mixture of
            Gaussians, site by site; and so the model's.
        data: a tensor, a tuple of tensors, a table, or a data set. Covariates are not compressed.
        bits: logarithm of the number of bins of a latent to base 2.
        verify: decompress the code, and compare.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Bytes, with their length in nats per observation, ``.nats``.

    Raises:
        ValueError: for data that are not discrete, distributions that cannot be coded symbol by symbol, a pair that
            breaks the contract, or a code that ``verify`` does not decode.
        ImportError: without the package constriction.

    Example:
        >>> from pyrovae import guides, likelihoods, models, nn, priors
        >>> decoder, likelihood = nn.MLP(2, 6), likelihoods.Bernoulli()
        >>> model = models.VAE(prior=priors.StandardNormal(2), decoder=decoder, likelihood=likelihood)
        >>> guide, x = guides.MeanField(nn.MLP(6, 8), 2), torch.eye(6).repeat(20, 1)
        >>> content = compress(model, guide, x, progress=False)
        >>> torch.equal(decompress(model, guide, content, progress=False), x)
        True
    """
    if not FEWEST_BITS <= at_least("bits", bits, FEWEST_BITS) <= MOST_BITS:
        raise ValueError(f"bits must be from {FEWEST_BITS} to {MOST_BITS}, got {bits}")
    coder, data = _coder(), as_data(with_holes(data), model, guide).unweighted()
    with ask(model, guide, data, **options) as question:
        codec = made_for(question, bits)
        words, sizes = codec.encoded(coder, options["seed"])
        batch = question.pair.given(question.data.batch(slice(0, len(question.data))))
        header = {**codec.header, "sizes": sizes, "device": question.data.device.type}
        fields = question.data.fields
    tensors = [t.cpu() for t in batch]
    for source in header["sources"]:
        _require_exact(data.name_of(source), fields[source], tensors[source])
    content = _content(header, tensors, fields, words)
    if flag("verify", verify):
        covariates = [t for k, t in enumerate(tensors) if k not in header["sources"]]
        decompress(model, guide, content, *covariates, **options)
    return content


@shared_keywords()
def decompress(
    model: Program, guide: Program, content: bytes, *covariates: Any, **options: Unpack[Options]
) -> Tensor | tuple[Tensor, ...]:
    """Return the data that were compressed.

    Args:
        model: generative program that they were compressed with.
        guide: recognition program that they were compressed with.
        content: what :func:`pyrovae.compress` returned.
        *covariates: the tensors that the model does not observe, ``[N, ...]``, in the form in which a batch has them
            (``data.batch(slice(None))``): divided by their levels, standardised.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        The tensor that the model observes, ``[N, ...]``, in its own dtype; several of them as a tuple. Columns of a
        table are numbered categories and counts.

    Raises:
        ValueError: for bytes that are no such code, another pair, or another kind of device.
    """
    coder = _coder()
    header, masks, words = _parts(content)
    kind = default_device(options["device"]).type
    if header["device"] != kind:
        raise ValueError(
            f"the data were compressed on {header['device']}, not on {kind}: give device={header['device']!r}"
        )
    with ask(model, guide, _template(header, masks, covariates), **options) as question:
        tensors = Codec(question, header).decoded(coder, words)
    if _check(tensors) != header["check"]:
        raise ValueError(
            "the code does not decode to the data: it takes the same covariates (in the form of batches), pair, "
            "versions and number of threads as when it was made, and programs that compute without random numbers"
        )
    result = tuple(_as_stored(t, *stored) for t, stored in zip(tensors, header["stored"], strict=True))
    return result if len(result) > 1 else result[0]


def _coder() -> Any:
    """Return a function from words to an entropy coder above them, and its family of distributions."""
    try:
        with importing():
            import constriction
    except ImportError:
        raise ImportError("compression takes the package constriction: pip install 'pyrovae[compression]'") from None
    family = constriction.stream.model.Categorical(perfect=False)
    return lambda words: (constriction.stream.stack.AnsCoder(words), family)


def _require_exact(name: str, field: Field, rows: Tensor) -> None:
    """Refuse a tensor that its batches do not determine. Typed columns of a table come back in the form of batches.

    Raises:
        ValueError: saying which.
    """
    if isinstance(field, Columns):
        return
    back, own = _as_stored(rows, *_stored(field, rows)), field.tensor.cpu()
    if not torch.equal(back.nan_to_num(-1.5), own.nan_to_num(-1.5)) or not torch.equal(back.isnan(), own.isnan()):
        raise ValueError(
            f"{name} holds {str(own.dtype).removeprefix('torch.')} numbers that batches of "
            f"{str(rows.dtype).removeprefix('torch.')} round, so that they would not come back: give them as "
            f"{str(rows.dtype).removeprefix('torch.')}, or as whole numbers with levels="
        )


def _stored(field: Field, rows: Tensor) -> list[Any]:
    """Return what leads from the form of batches back to that of a tensor: dtypes, levels, whether they are whole."""
    whole = not field.tensor.is_floating_point() or bool((field.tensor.nan_to_num(0.0) % 1 == 0).all())
    return [*(str(dtype).removeprefix("torch.") for dtype in (rows.dtype, field.tensor.dtype)), field.levels, whole]


def _as_stored(tensor: Tensor, _: str, dtype: str, levels: float | None, whole: bool) -> Tensor:
    values = tensor.double() if levels is None else tensor.double() * levels
    return (values.round() if whole else values).to(getattr(torch, dtype))


def _check(tensors: list[Tensor]) -> list[int]:
    """Return checksums of tensors in the form of batches."""
    whole = (t.nan_to_num(nan=0.0) if t.is_floating_point() else t for t in tensors)
    return [zlib.crc32(t.contiguous().numpy().tobytes()) for t in whole]


def _content(header: dict[str, Any], batch: list[Tensor], fields: Sequence[Field], words: np.ndarray) -> Compressed:
    """Return one sequence of bytes: a mark, the header, which cells are missing, the code, and a checksum."""
    sources = header["sources"]
    observed = [batch[source] for source in sources]
    missing = [t.isnan().numpy() if t.is_floating_point() else np.zeros(0, dtype=bool) for t in observed]
    header = {
        **header, "num_tensors": len(batch), "shapes": [list(t.shape) for t in observed], "check": _check(observed),
        "stored": [_stored(fields[source], batch[source]) for source in sources],
        "missing": [bool(m.any()) for m in missing],
    }  # fmt: skip
    values = json.dumps([header[name] for name in HEADER], separators=(",", ":")).encode()
    masks = b"".join(np.packbits(m).tobytes() if m.any() else b"" for m in missing)
    blocks = [zlib.compress(values, 9), zlib.compress(masks, 9) if masks else b""]
    sizes = np.array([len(block) for block in blocks], dtype="<u4").tobytes()
    whole = MAGIC + sizes + b"".join(blocks) + words.astype("<u4").tobytes()
    content = Compressed(whole + zlib.crc32(whole).to_bytes(4, "little"))
    content.num_data = len(batch[0])
    return content


def _parts(content: Any) -> tuple[dict[str, Any], bytes, np.ndarray]:
    """Return the header, the masks of missing cells, and the words of a code.

    Raises:
        ValueError: for bytes that are no code.
    """
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ValueError(f"content must be the bytes that pyrovae.compress returned, got {type(content).__name__}")
    content, sum_of_all = bytes(content[:-4]), bytes(content[-4:])
    start = len(MAGIC) + 8
    try:
        if not content.startswith(MAGIC) or zlib.crc32(content).to_bytes(4, "little") != sum_of_all:
            raise ValueError("its checksum is another")
        first, second = (int(size) for size in np.frombuffer(content[len(MAGIC) : start], dtype="<u4"))
        words = np.frombuffer(content[start + first + second :], dtype="<u4").astype(np.uint32)
        values = json.loads(zlib.decompress(content[start : start + first]))
        masks = content[start + first : start + first + second]
        return dict(zip(HEADER, values, strict=True)), zlib.decompress(masks) if masks else b"", words
    except (ValueError, zlib.error, KeyError, TypeError) as error:
        raise ValueError(f"content is no code of pyrovae.compress, or it is damaged ({error})") from None


def _template(header: dict[str, Any], masks: bytes, covariates: tuple[Any, ...]) -> Data:
    """Return data of the right shapes: covariates as given, missing cells, and a possible value in all others."""
    fields: dict[int, Field] = {}
    for source, shape, columns, missing, (dtype, *_) in zip(
        header["sources"], header["shapes"], header["alphabets"], header["missing"], header["stored"], strict=True
    ):
        cells = int(np.prod(shape))
        firsts = torch.tensor([c[0] if c else 0.0 for c in columns], dtype=torch.float64, device="cpu")
        rows = firsts.expand(shape[0], cells // shape[0]).reshape(shape).clone()
        if missing:
            size = -(-cells // 8)
            bits = np.unpackbits(np.frombuffer(masks[:size], dtype=np.uint8), count=cells).astype(bool)
            rows[torch.from_numpy(bits.reshape(shape))], masks = torch.nan, masks[size:]
        fields[source] = Field(rows.to(getattr(torch, dtype)), missing=missing)
    expected = header["num_tensors"] - len(fields)
    if len(covariates) != expected:
        raise ValueError(f"the data were compressed given {expected} covariates, and {len(covariates)} were given")
    others = iter(covariates)
    return Data(*(fields[k] if k in fields else next(others) for k in range(header["num_tensors"])))
