import contextlib
import functools
import gzip
import io
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import bits, make_vae
from scipy.sparse import csr_matrix
from torch.utils.data import DataLoader, TensorDataset

from pyrovae import evaluate, fit, guides, models, nn
from pyrovae.data import CSV, MNIST, Array, Data, Digits, DSprites, Dynamic, FashionMNIST, Static, as_data
from pyrovae.data.mnist import _read


def test_digits():
    data = Digits()
    assert len(data) == 1797
    assert data.shape == data.image_shape == (1, 8, 8)
    (x,) = data.batch(slice(None))
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert data.tensors[0].dtype == torch.uint8
    assert sorted(set(data.labels.tolist())) == list(range(10))


def test_static_bits_stay_and_follow_the_intensities():
    data, again = Digits(binarise=Static()), Digits(binarise=Static())
    (x,), (y,) = data.batch(slice(None)), again.batch(slice(None))
    assert torch.equal(x, y)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    (intensity,) = Digits().batch(slice(None))
    variance = (intensity * (1 - intensity)).sum() / intensity.numel() ** 2
    assert abs(float(x.mean() - intensity.mean())) < 4 * float(variance.sqrt())  # fails with probability 6e-5
    other = Digits(binarise=Static(seed=1)).batch(slice(None))[0]
    assert not torch.equal(x, other)


def test_dynamic_bits_are_drawn_anew_and_fixed_for_judging():
    data = Digits(binarise=Dynamic())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = data.batch(slice(0, 50))[0], data.batch(slice(0, 50))[0]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    evaluated = data.fixed()
    assert torch.equal(evaluated.batch(slice(0, 50))[0], evaluated.batch(slice(0, 50))[0])
    assert torch.equal(evaluated.batch(slice(0, 50))[0], data.fixed().batch(slice(0, 50))[0])
    part = data.splits().test
    assert part.fixed().batch(slice(None))[0].unique().tolist() == [0.0, 1.0]


def test_splits_are_disjoint_seeded_and_complete():
    data = Data(torch.arange(100.0)[:, None], labels=torch.arange(100))
    train, validation, test = data.splits(validation=np.float32(0.1), test=0.25, seed=3)
    assert [len(part) for part in (train, validation, test)] == [65, 10, 25]
    everything = torch.cat([part.batch(slice(None))[0] for part in (train, validation, test)])
    assert sorted(everything.flatten().tolist()) == list(range(100))
    assert torch.equal(train.labels.float(), train.batch(slice(None))[0].flatten())
    again = data.splits(validation=0.1, test=0.25, seed=3)
    assert torch.equal(again.test.tensors[0], test.tensors[0])
    assert not torch.equal(data.splits(validation=0.1, test=0.25, seed=4).test.tensors[0], test.tensors[0])
    with pytest.raises(ValueError, match=r"shares of at least 0 and below 1 in sum were expected, got 0.5 and 0.6"):
        data.splits(validation=0.5, test=0.6)


def test_a_sample_of_the_data_is_random_seeded_and_keeps_what_belongs_to_them():
    """Of 1,000 data in 4 sorted groups, the numbers in a sample of 200: hypergeometric, at 4 standard deviations."""
    x = torch.arange(1000.0)[:, None]
    whole = Data(x, labels=torch.arange(1000) // 250)
    part = whole.sampled(200, seed=3)
    assert len(part) == 200
    assert torch.equal(part.labels, part.batch(slice(0, 200))[0][:, 0].long() // 250)
    assert len(part.labels.unique()) == 4
    counts = part.labels.bincount(minlength=4).double()
    assert ((counts - 50).abs() < 4 * (200 * 0.25 * 0.75 * 800 / 999) ** 0.5).all()
    assert torch.equal(part.labels, whole.sampled(200, seed=3).labels)
    assert not torch.equal(part.labels, whole.sampled(200, seed=4).labels)
    assert whole.sampled(1000) is whole
    numbers = whole.numbered().sampled(5).batch(slice(0, 5))
    assert torch.equal(numbers[0][:, 0].long(), numbers[1])


def test_batches_cover_the_set_in_order():
    data = as_data((torch.arange(10), torch.arange(10.0).double()))
    batches = list(data.to(dtype=torch.float32).batches(4))
    assert [list(indices) for indices, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[2][1][0].dtype == torch.int64
    assert batches[2][1][1].dtype == torch.float32
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        next(data.batches(0))


@functools.cache
def idx(magic, count, shape, highest, random):
    """The packed content of an idx file, of which so many items are random and the others blank."""
    items = np.zeros((count, *shape), np.uint8)
    items[:random] = np.random.default_rng(0).integers(0, highest + 1, (random, *shape))
    return gzip.compress(np.array([magic, count, *shape], ">u4").tobytes() + items.tobytes(), 1)


def fake_mnist(root, folder="MNIST", train=30, test=10_000):
    """Write files as the published ones are; ``train`` and ``test`` of their pictures are noise, the others blank."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, count, random in (("train", 60_000, train), ("t10k", 10_000, test)):
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(2051, count, (28, 28), 255, random))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(2049, count, (), 9, random))
    return raw


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_mnist_is_read_from_torchvisions_layout(tmp_path, source, monkeypatch):
    raw = fake_mnist(tmp_path, source.folder)
    data = source(root=tmp_path)
    assert len(data) == 70_000
    train, validation, test = data.splits()
    assert [len(part) for part in (train, validation, test)] == [50_000, 10_000, 10_000]
    packed = (raw / "t10k-images-idx3-ubyte.gz").read_bytes()
    (raw / "t10k-images-idx3-ubyte").write_bytes(gzip.decompress(packed))
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path))
    plain = source(binarise=Dynamic())
    assert torch.equal(plain.tensors[0], data.tensors[0])
    assert float(data.batch(slice(None))[0].max()) == 1.0
    with pytest.raises(ValueError, match=r"no file 'train-images-idx3-ubyte'.*ask for the download"):
        source(root=tmp_path / "nowhere")
    (raw / "train-images-idx3-ubyte.gz").write_bytes(packed[:100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz' cannot be read"):
        source(root=tmp_path)
    with pytest.raises(ValueError, match="the published test set"):
        plain.splits(test=0.5)


def test_the_users_array(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(24.0).reshape(4, 6))
    assert Array(path).shape == 6
    assert Array(path).batch(slice(None))[0].dtype == torch.float32
    np.save(path, np.arange(40).reshape(2, 4, 5).astype(np.uint8))
    grey = Array(path, levels=255)
    assert grey.image_shape == (1, 4, 5)
    assert float(grey.batch(slice(None))[0].max()) == pytest.approx(39 / 255)
    np.save(path, np.zeros((2, 3, 4, 5)))
    assert Array(path).image_shape == (3, 4, 5)
    for bad, message in (
        (np.zeros(3), "must hold numbers"),
        (np.array([["a"]]), "must hold numbers"),
        (np.array([[np.nan]]), "holds nan at observation 0"),
        (np.zeros((0, 4)), "the data set is empty"),
    ):
        np.save(path, bad)
        with pytest.raises(ValueError, match=message):
            Array(path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot read an array"):
        Array(path)
    with pytest.raises(ValueError, match="cannot read an array"):
        Array(tmp_path / "none.npy")


def test_a_header_with_any_bit_flipped_is_read_or_refused_in_a_sentence(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(12.0).reshape(4, 3))
    whole = (tmp_path / "rows.npy").read_bytes()
    for bit in range(8 * 128):  # the header's
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (tmp_path / "rows.npy").write_bytes(damaged)
        with contextlib.suppress(ValueError):
            Array(tmp_path / "rows.npy")


def test_the_users_table(tmp_path):
    path = tmp_path / "x.csv"
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0, 5, 1], "kind": ["x", "y", "x"]})
    frame.to_csv(path, index=False)
    data = CSV(path, label="kind", standardise=True)
    assert data.feature_names == ["a", "b"]
    assert data.labels.tolist() == [0, 1, 0]
    assert data.subset([1, 0]).classes.tolist() == ["y", "x"]
    values = data.batch(slice(None))[0]
    torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(2))
    for options, message in (
        ({}, "column 'kind' of .* is not numeric"),
        ({"label": "nothing"}, "has no column 'nothing'; it has a, b, kind"),
    ):
        with pytest.raises(ValueError, match=message):
            CSV(path, **options)
    frame.assign(kind=[None, "y", "x"]).to_csv(path, index=False)
    known = CSV(path, label="kind")
    assert known.labels.tolist() == [-1, 1, 0]
    assert pd.isna(known.classes).tolist() == [True, False, False]
    frame.assign(a=[1.0, None, 2.0]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"column 'a' of .* lacks a value in row 1 "):
        CSV(path, label="kind")
    frame.assign(a=1.0).to_csv(path, index=False)
    alike = CSV(path, label="kind", standardise=True)
    for use in (alike.splits, lambda: alike.batch(slice(None)), lambda: alike.subset([0, 1]), alike.fingerprint):
        with pytest.raises(ValueError, match=r"column 'a' of [123] data is constant, so it cannot be standardised"):
            use()
    given = alike.with_moments((torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0])))  # what varies elsewhere
    assert given.subset([1]).batch(slice(None))[0].tolist() == [[0.5, 4.0]]
    path.write_text("")
    with pytest.raises(ValueError, match="cannot read a table"):
        CSV(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="the data set is empty"):
        CSV(path)


def test_labels_have_names():
    values, numbers = torch.ones(4, 2), torch.tensor([2, 0, -1, 2])
    assert Data(values).classes is None
    assert Data(values, labels=numbers).classes.codes.tolist() == [1, 0, -1, 1]
    named = Data(values, labels=numbers, label_names=["a", "b", "c"]).classes
    assert (named.tolist()[:2], list(named.categories), named.codes.tolist()) == (["c", "a"], ["a", "c"], [1, 0, -1, 1])
    with pytest.raises(ValueError, match="one name per label: got 2 names for labels up to 2"):
        Data(values, labels=numbers, label_names=["a", "b"])
    with pytest.raises(ValueError, match="got 1 names for no labels"):
        Data(values, label_names=["a"])


def test_a_set_is_standardised_by_its_training_part():
    values = torch.arange(40.0).reshape(20, 2).square()
    data = Data(values, feature_names=["a", "b"])
    torch.testing.assert_close(data.standardised().batch(slice(None))[0].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert data.moments is None
    train, _, test = data.standardised().splits(test=0.5)
    known, held = (part.tensors[0] for part in (train, test))
    expected = (held - known.mean(0)) / known.std(0, correction=0)
    torch.testing.assert_close(test.batch(slice(None))[0], expected)
    rare = torch.zeros(20)
    rare[data.splits(test=0.5).test.tensors[0][:, 0].sqrt().long() // 2] = 0.1  # varies in the test set alone
    with pytest.raises(ValueError, match="column 'b' of 8 data is constant, so it cannot be standardised: drop it"):
        Data(torch.stack([values[:, 0], rare], 1), feature_names=["a", "b"]).standardised().splits(test=0.5)
    with pytest.raises(ValueError, match="column 1 of 20 data is constant"):
        Data(torch.stack([values[:, 0], torch.full((20,), 0.1)], 1)).standardised()
    with pytest.raises(ValueError, match="a set that is binarised cannot be standardised"):
        Data(values / values.max(), binarise=Dynamic()).standardised()


def test_intensities_that_cannot_be_binarised():
    with pytest.raises(ValueError, match="intensities between 0 and 1 were expected to binarise, got 0 to 3"):
        Data(torch.arange(4.0)[:, None], binarise=Static())


@pytest.mark.filterwarnings("ignore:Sparse .*:UserWarning")  # torch's own, of tensors that are beta
@pytest.mark.parametrize("made", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc])
def test_sparse_tensors_are_refused_before_any_work(made):
    counts = torch.eye(5)
    with pytest.raises(ValueError, match=r"tensor 1 of the data is not dense \(torch.sparse_.*: give x.to_dense\(\)"):
        as_data((counts, made(counts)))
    with pytest.raises(ValueError, match="tensor 0 of the data is not dense"):
        Data(made(counts))


OTHERS = {
    "mapping": (lambda: {"x": torch.ones(3)}, "got dict: give its tensors as a tuple, in the order"),
    "dataset": (lambda: TensorDataset(torch.ones(3)), r"got TensorDataset: wrap the Dataset, pyrovae.data.Stream"),
    "loader": (lambda: DataLoader(TensorDataset(torch.ones(3))), "got DataLoader: wrap the Dataset"),
    "scipy": (lambda: csr_matrix(np.eye(3)), r"got csr_matrix: give x.toarray\(\)"),
    "nothing": (lambda: (), "got nothing$"),
}


@pytest.mark.parametrize(("make", "message"), OTHERS.values(), ids=OTHERS)
def test_data_of_other_kinds_are_told_the_way_in(make, message):
    with pytest.raises(ValueError, match=message):
        as_data(make())


KINDS = {
    "masked": (lambda: np.ma.masked_invalid([[1.0, np.nan]]), r"masked array.*x.astype\(float\).filled\(np.nan\)"),
    "objects": (lambda: np.array([[1.0, None]]), r"dtype object, Python objects: give numbers"),
    "text": (lambda: np.array([["a"]]), "text: encode it as numbers"),
    "complex": (lambda: np.ones((2, 2), complex), "complex numbers: give their real and imaginary parts"),
    "dates": (lambda: np.array([["2020-01-01"]], "datetime64[D]"), r"dates: give numbers, .*astype\(float\)"),
    "durations": (lambda: np.ones((2, 2), "timedelta64[s]"), "durations: give numbers"),
    "records": (lambda: np.ones(3, [("a", float), ("b", float)]), "structured_to_unstructured"),
    "long": (lambda: np.ones((2, 2), np.longdouble), r"give x.astype\(numpy.float64\)"),
    "beyond": (lambda: np.full((2, 2), 2**63, np.uint64), r"whole numbers above 2\*\*63 - 1"),
    "nested list": (
        lambda: [[1.0, 2.0], [3.0, 4.0]],
        r"got list: give an array with one observation per row, numpy.array\(x\)",
    ),
    "ragged list": (lambda: [[1.0, 2.0], [3.0]], "got list: give an array .* of rows of one length"),
    "list": (lambda: [1.0, 2.0], "got list: give an array"),
    "scalar": (
        lambda: np.float32(3),
        r"got float32: give an array with one observation per row, numpy.array\(\[\[x\]\]\)",
    ),
    "number": (lambda: 3, "got int: give an array"),
    "path": (lambda: "x.csv", r"got str: read the file, pyrovae.data.Table\(path\)"),
    "frame": (lambda: pd.DataFrame({"a": [1.0]}), r"data.Table\(frame\)"),
    "series": (lambda: (torch.ones(1), pd.Series([1.0])), r"got Series: give a table, .*x.to_numpy\(\)"),
    "meta": (lambda: torch.ones(3, 2, device="meta"), "on the meta device, .*: give a tensor with values"),
    "complex tensor": (lambda: torch.ones(3, 2, dtype=torch.complex64), "give the real and imaginary parts"),
    "nested tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "a nested tensor: give one whose rows have one length",
    ),
    "eighths": (lambda: torch.ones(3, 2).to(torch.float8_e4m3fn), r"dtype torch.float8_e4m3fn.*give x.float\(\)"),
    "no columns": (lambda: torch.ones(3, 0), r"the first tensor of the data, \[3, 0\], has no columns"),
    "no rows": (lambda: np.ones((0, 3)), "the data set is empty"),
    "no dimension": (lambda: torch.tensor(1.0), "data must be tensors whose dimension 0 is the observation"),
}


@pytest.mark.parametrize(("make", "message"), KINDS.values(), ids=KINDS)
def test_what_is_no_array_of_numbers_is_told_the_way_in(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_data(make())
    assert "\n" not in str(caught.value)
    if not isinstance(make(), list | tuple):
        with pytest.raises(ValueError, match=message.removeprefix("got ")):
            Data(make())


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantized_tensors_are_refused():
    with pytest.raises(ValueError, match=r"is quantized: give x.dequantize\(\)"):
        as_data(torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.quint8))


def strided(kind):
    base = np.arange(12.0).reshape(4, 3)
    records = np.zeros(4, [("flag", "i1"), ("x", "f8")])
    records["x"] = base[:, 0]
    frozen = base.copy()
    frozen.flags.writeable = False
    return {
        "big-endian": base.astype(">f8"),
        "turned": base[::-1, ::-1],
        "transposed": base.T,
        "read-only": frozen,
        "broadcast": np.broadcast_to(base[:1], (4, 3)),
        "field": records["x"],
        "16 bits": base.astype(np.uint16),
        "32 bits": base.astype(">u4"),
        "half": base.astype(np.float16),
        "bool": base > 3,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["big-endian", "turned", "transposed", "read-only", "broadcast", "field", "16 bits", "32 bits", "half", "bool"],
)
def test_arrays_of_any_layout_are_taken(kind):
    array = strided(kind)
    before = array.copy()
    data = as_data(array)
    assert data.tensors[0].double().numpy().tolist() == array.astype(float).tolist()
    (x,) = data.batch(torch.tensor([1, 0]))
    assert x.double().numpy().tolist() == array[[1, 0]].astype(float).tolist()
    assert data.tensors[0].dtype == {"16 bits": torch.int64, "32 bits": torch.int64}.get(kind, data.tensors[0].dtype)
    if not array.flags.writeable:
        data.batch(slice(0, 1))[0].zero_()
        assert np.array_equal(array, before)


def test_sixteen_bits_of_torch_are_whole_numbers():
    data = as_data(torch.arange(6).reshape(3, 2).to(torch.uint16))
    assert data.tensors[0].equal(torch.arange(6).reshape(3, 2))


X = torch.arange(12.0).reshape(4, 3)
ARGUMENTS = {
    "labels as a list": ({"labels": [0, 1, 0, 1]}, "labels must be a tensor or an array, got list: give an array"),
    "labels as floats": ({"labels": torch.ones(4)}, r"labels must be whole numbers .* got torch.float32 .*y.long\(\)"),
    "labels as columns": ({"labels": torch.ones(4, 1).long()}, r"labels must be whole numbers .* shape \[4, 1\]"),
    "labels of others": ({"labels": torch.arange(3)}, "got 3 labels for 4 data"),
    "one string of names": ({"feature_names": "abc"}, "feature_names must be a list of strings, got 'abc'"),
    "numbers for names": ({"feature_names": [0, 1, 2]}, "feature_names must be a list of strings"),
    "a number for names": ({"feature_names": 3}, "feature_names must be a list of strings, got 3"),
    "names of others": ({"feature_names": ["a"]}, "got 1 names for 3 features"),
    "label names": ({"labels": torch.arange(4), "label_names": 4}, "label_names must be a list of strings, got 4"),
    "factors as a list": ({"factors": [[1]] * 4}, "factors must be a tensor or an array, got list"),
    "factors of others": ({"factors": torch.ones(3, 2)}, r"factors must be \[4, 2\], got \[3, 2\]"),
    "flat factors": ({"factors": torch.ones(4)}, r"factors must be \[4, 4\], got \[4\]"),
    "factor names": ({"factors": torch.ones(4, 2), "factor_names": "ab"}, "factor_names must be a list of strings"),
    "factor names alone": ({"factor_names": ["a"]}, "without factors"),
    "an image of others": ({"image_shape": (1, 2, 2)}, r"number of columns of the first tensor, 3, got \(1, 2, 2\)"),
    "an image of two": ({"image_shape": (1, 3)}, r"image_shape must be \(channels, rows, columns\)"),
    "an image of text": ({"image_shape": "113"}, "image_shape must be"),
    "no levels": ({"levels": 0}, "levels must be a finite number above 0, got 0"),
    "levels below 0": ({"levels": -255}, "levels must be a finite number above 0, got -255"),
    "unknown levels": ({"levels": float("nan")}, "levels must be a finite number above 0, got nan"),
    "levels in words": ({"levels": "255"}, "levels must be a finite number above 0, got '255'"),
    "a class": ({"binarise": Static}, r"an instance such as Static\(\) or Dynamic\(\), got the class Static"),
    "a word": ({"binarise": "static"}, "an instance .* got 'static'"),
}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_do_not_belong_to_the_tensors(options, message):
    with pytest.raises(ValueError, match=message):
        Data(X, **options)


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.0, "0.1", None, True])
def test_shares_are_numbers_below_one(share):
    for name in ("validation", "test"):
        with pytest.raises(ValueError, match=r"shares in \[0, 1\) were expected, got "):
            Data(X).splits(**{name: share})


def test_a_few_data_are_fitted_and_an_empty_part_is_refused():
    for count in (1, 3):
        train, validation, _ = Data(bits(count)).splits()
        fit(*make_vae(), train, epochs=1, progress=False, compile=False)
        for data, others in ((validation, None), (train, validation)):
            with pytest.raises(ValueError, match="the data set is empty, as a part of splits"):
                fit(*make_vae(), data, validation_data=others, epochs=1, progress=False, compile=False)


def test_a_checksum_tells_shapes_dtypes_and_values_apart():
    x = torch.arange(6.0)
    sets = [Data(x.reshape(2, 3)), Data(x.reshape(3, 2)), Data(x.reshape(2, 3).double()), Data(x.reshape(2, 3).int())]
    sets += [Data(x.reshape(2, 3).T.contiguous()), Data(x.reshape(2, 3), levels=2), Data(x.reshape(3, 2).T)]
    sets += [Data(x), Data(x.reshape(2, 3)).standardised(), Data(x).standardised(), Data(x[:, None].bfloat16())]
    sums = [data.fingerprint() for data in sets]
    assert len(set(sums)) == len(sums)
    assert Data(x.reshape(2, 3)).fingerprint() == sums[0]
    assert Data(x.reshape(3, 2).T.contiguous()).fingerprint() == sums[6]  # in whatever order in memory
    zeros = torch.zeros(4, dtype=torch.int32)
    assert Data(zeros).fingerprint() != Data(zeros.view(torch.float32)).fingerprint()


TABLES = {
    "a field more": ("a,b\n1,2,3\n4,5,6\n", r"line 2 of .* has 3 fields, and the header names 2 columns"),
    "a field more at last": ("a,b\n1,2\n4,5,6\n", "line 3 of .* has 3 fields"),
    "a field less": ("a,b,y\n1,2,0\n\n4,5\n", r"line 4 of .* has 2 fields, and the header names 3"),
    "no header": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", r"holds numbers \(5.1, 3.5, setosa\), not the names"),
    "no header, whole": ("7,3,1,0\n4,5,6,7\n", r"holds numbers \(7, 3, 1, ...\), .*give the columns names"),
    "no header, one column": ("7\n4\n", "holds numbers"),
    "an exponent": ("1e-3,2\n4,5\n", "holds numbers"),
    "an index": (",a,b\n0,1,2\n1,3,4\n", r"column 0 of .* has no name, .*index=False\), or name"),
    "an index written again": ("Unnamed: 0,a\n0,1\n1,3\n", "column 0 of .* has no name"),
    "a comma at the end": ("a,b,\n1,2,\n", "column 2 of .* has no name"),
    "twice": ("y,a,y\n0,1,0\n1,3,1\n", "several columns named 'y': give every column a name of its own"),
    "labels alone": ("y\n0\n1\n", "has no column beside the label 'y': at least one feature"),
    "infinite": ("y,a\n0,1\n1,-inf\n", r"column 'a' of .* holds -inf in row 1 \(1 in all\)"),
    "too many digits": ("y,a\n0,1\n1,9007199254740993\n", r"column 'a' of .* holds 9007199254740993 in row 1"),
    "too many digits beside a gap": ("y,a,b\n0,,1\n1,9007199254740993,2\n", "double precision rounds|lacks a value"),
    "a zero byte": ("y,a\n0,\x001\n", "zero bytes, so it is no text"),
    "semicolons": ("a;b\n1,5;2\n", "are separated by ';': write it with commas"),
    "tabs": ("a\tb\n1\t2\n", r"are separated by '\\t': write it with commas"),
    "a comment": ("# made today\na,b\n1,2\n", "begins with a comment"),
    "a row that counts": ("1,2\n3,4\n", "holds numbers"),
    "a word": ("a,b\n1,2\n3,n.d.\n", r"not numeric \(row 1 holds 'n.d.'\)"),
    "an open quote": ('y,a\n0,"1\n1,2\n', "cannot read a table|has 2 fields|not numeric"),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("text", "message"), TABLES.values(), ids=TABLES)
def test_tables_that_would_be_guessed_at_are_refused(text, message, missing, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    label = "y" if "y" in text.splitlines()[0] else None
    with pytest.raises(ValueError, match=message) as caught:
        CSV(path, label=label, missing=missing)
    assert "\n" not in str(caught.value)


def test_headers_that_count_are_names(tmp_path):
    path = tmp_path / "x.csv"
    for header, names in (("0,1,2", ["0", "1", "2"]), ("2019,2020,2021", ["2019", "2020", "2021"]), ("x,1,7", None)):
        path.write_text(f"{header}\n1,2,3\n4,5,6\n")
        assert CSV(path).feature_names == (names or header.split(","))
    pd.DataFrame(np.eye(3)[:, :1]).to_csv(path, index=False)
    assert CSV(path).feature_names == ["0"]


def test_a_table_of_a_spreadsheet(tmp_path):
    """A byte order mark, quotes with line breaks in them, blank lines, and truth values."""
    path = tmp_path / "x.csv"
    text = 'a,"the\nb",flag\r\n1,2.5,True\r\n\r\n3,4.5,False\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    data = CSV(path)
    assert data.feature_names == ["a", "the\nb", "flag"]
    assert data.batch(slice(None))[0].tolist() == [[1.0, 2.5, 1.0], [3.0, 4.5, 0.0]]
    path.write_text("a,flag\n1,True\n2,\n")
    held = CSV(path, missing=True).tensors[0]
    assert held[:, 0].tolist() == [1.0, 2.0]
    assert held[0, 1] == 1
    assert held[1, 1].isnan()
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert CSV(path).tensors[0].equal(data.tensors[0])


def test_files_that_are_no_tables(tmp_path, monkeypatch):
    def refused(content, message, name="x.csv"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read a table from .*{name}': {message}") as caught:
            CSV(path)
        assert "\n" not in str(caught.value)

    refused(b"", "it is empty")
    refused(b"\n\n  \n", "it is empty")
    refused(b"a,b\n\xff\xfe,2\n", r"it is not UTF-8 text \(byte 0xff\)")
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 100)
    refused(whole[:-12], "the compressed file ends early", "x.csv.gz")
    refused(whole[:15] + b"\xff" * 9 + whole[24:], "", "x.csv.gz")
    refused(b"a,b\n1,2\n", "Not a gzipped file", "x.csv.gz")
    monkeypatch.setattr("pyrovae.tables.csv_numbers.UNSUSPECTED", 10_000)
    refused(gzip.compress(b"a,b\n" + b"1,2\n" * 100_000), "it unpacks to over 100 times its size", "x.csv.gz")
    monkeypatch.setattr("pyrovae.tables.csv_numbers.LONGEST_LINE", 1000)
    refused(gzip.compress(b"1" * 2000), "a line has over 1000 characters", "x.csv.gz")
    with pytest.raises(ValueError, match="Is a directory"):
        CSV(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        CSV(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="the path of a CSV file was expected, got None"):
        CSV(None)


START = 1.7e9  # seconds, of this century


@pytest.fixture
def stamps(tmp_path):
    """200 times, a second apart, beside noise; in a table and in an array."""
    frame = pd.DataFrame({"noise": np.random.default_rng(0).normal(size=200), "time": START + np.arange(200)})
    frame.to_csv(tmp_path / "x.csv", index=False)
    np.save(tmp_path / "x.npy", frame.to_numpy())
    return frame.to_numpy()


@pytest.mark.parametrize("source", ["CSV", "Array", "mapped", "tensor"])
def test_data_are_kept_in_double_precision(stamps, source, tmp_path):
    data = {
        "CSV": lambda: CSV(tmp_path / "x.csv"),
        "Array": lambda: Array(tmp_path / "x.npy"),
        "mapped": lambda: Array(tmp_path / "x.npy", mapped=True),
        "tensor": lambda: as_data(stamps),
    }[source]()
    assert data.tensors[0].dtype == torch.float64
    assert data.batch(slice(None))[0].dtype == (torch.float64 if source == "tensor" else torch.float32)
    double = data.to(dtype=torch.float64)
    assert np.array_equal(double.batch(torch.arange(200))[0].numpy(), stamps)
    assert len(data.splits().train.to(dtype=torch.float64).batch(slice(None))[0][:, 1].unique()) == 140
    name = "'time'" if source == "CSV" else "1"
    sentence = rf"column {name} of the data loses [\d.]+ standard deviations by rounding to float32, .*standardise it"
    with torch.random.fork_rng():
        pair, x = (models.LinearGaussian(1, 2), guides.FullRank(nn.MLP(2, 4), 1)), torch.randn(9, 2)
    options = {"steps": 1, "progress": False, "compile": False}
    for ask in (
        lambda: fit(*pair, data, **options),
        lambda: fit(*pair, x, validation_data=data, **options),
        lambda: evaluate(*pair, data, num_particles=2, progress=False),
        lambda: fit(*pair, data.subset(slice(0, 100)), **options),
    ):
        with pytest.raises(ValueError, match=sentence):
            ask()
    if source != "mapped":
        fit(*pair, data.standardised(), **options)
    fit(*pair, data, precision="float64", **options)


def test_columns_that_rounding_leaves_as_they_are():
    """Constants, whole numbers that single precision holds, and an outlier beside which the others vanish."""
    rows = torch.arange(5000, dtype=torch.float64)
    constant, whole = torch.full_like(rows, START + 0.1), 1e7 + rows
    outlier = torch.where(rows == 3, 1e9, rows / 7)
    gaps = torch.where(rows % 2 == 0, torch.nan, rows)
    harmless = torch.stack([constant, whole, outlier, gaps], 1)
    Data(harmless, missing=True).to(dtype=torch.float32).see_that_rounding_is_harmless()
    Data(1000 + rows / 5000).to(dtype=torch.bfloat16).see_that_rounding_is_harmless()  # whose few digits were chosen
    for lost, amount in ((1e8 + rows / 1e4, "[0-9.]+ stand"), (torch.where(rows == 3, 1e300, rows), "all of its")):
        data = Data(rows, torch.stack([rows, lost], 1)).to(dtype=torch.float32)
        with pytest.raises(ValueError, match=f"column 1 of tensor 1 of the data loses {amount}"):
            data.see_that_rounding_is_harmless()
        Data(*(tensor[:9] for tensor in data.tensors)).to(dtype=torch.float32).see_that_rounding_is_harmless()
    seconds = (START + rows[:, None]).long()
    as_data(seconds).to(dtype=torch.float32).see_that_rounding_is_harmless()  # whole numbers, which are not cast
    with pytest.raises(ValueError, match=r"column 0 of the data loses 0\.02"):
        Data(seconds, levels=1).to(dtype=torch.float32).see_that_rounding_is_harmless()


def npy(shape, dtype="<f8", content=b""):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def zipped(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FILES = {
    "text": (b"1.0,2.0\n3.0,4.0\n" * 10, "it is no .npy file, or a damaged one: save the array by numpy.save"),
    "nothing": (b"", "it is empty: save the array"),
    "pickled": (saved(np.array([[{}]])), "it holds Python objects: give numbers"),
    "archive": (zipped(x=np.eye(2)), "it is a .npz archive of arrays"),
    "80 TB": (npy((10**7, 10**6)), "8[0]{13} bytes, and 0 follow, so it is damaged"),
    "cut off": (saved(np.eye(20))[:-9], "3200 bytes, and 3191 follow"),
    "cut off early": (saved(np.eye(20))[:40], "a damaged one"),
    "two arrays": (saved(np.eye(2)) + saved(np.eye(2)), "32 bytes, and 192 follow"),
    "less than no rows": (npy((-1, -1), content=bytes(8)), "so it is damaged"),
    "a header without end": (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "it is no .npy file, or a damaged one"),
    "records": (saved(np.ones(3, [("a", float)])), "must hold numbers"),
    "complex": (saved(np.ones((2, 2), complex)), "must hold numbers .* got complex128"),
    "one dimension": (saved(np.ones(3)), r"must hold numbers .* got float64 of shape \(3,\)"),
    "no columns": (saved(np.ones((3, 0))), r"\[3, 0\], has no columns"),
    "no rows": (saved(np.ones((0, 3))), "the data set is empty"),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_files_that_are_no_arrays(content, message, mapped, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Array(path, mapped=mapped)
    assert "allow_pickle" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_arrays(tmp_path):
    for path, message in (
        (tmp_path, "Is a directory"),
        (tmp_path / "x.npy", "No such file"),
        (3, "path of a .npy file"),
    ):
        with pytest.raises(ValueError, match=message):
            Array(path)


def test_arrays_of_other_machines(tmp_path):
    path = tmp_path / "x.npy"
    for dtype in (">f8", ">i2", "<u2", ">u4"):
        np.save(path, np.arange(6).reshape(3, 2).astype(dtype))
        (x,) = Array(path).batch(slice(1, 3))
        assert x.equal(torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
        with pytest.raises(ValueError, match=r"cannot be mapped: save it once as numpy.ascontiguousarray"):
            Array(path, mapped=True)
    np.save(path, np.asfortranarray(np.arange(12.0).reshape(2, 3, 2)))
    assert Array(path).batch(slice(None))[0].equal(torch.arange(12.0).reshape(2, 6))
    with pytest.raises(ValueError, match="in Fortran's order cannot be mapped"):
        Array(path, mapped=True)


PICTURES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
IDX = {
    "other kind": (PICTURES, lambda: idx(2049, 60_000, (28, 28), 255, 0), r"\[2049, 60000, 28, 28\], and \[2051, "),
    "fewer": (PICTURES, lambda: idx(2051, 59_999, (28, 28), 255, 0), r"\[2051, 59999, 28, 28\], and \[2051, 60000"),
    "smaller": (PICTURES, lambda: idx(2051, 60_000, (14, 56), 255, 0), r"\[2051, 60000, 14, 56\]"),
    "turned": (PICTURES, lambda: idx(2051, 60_000, (784,), 255, 0), r"and \[2051, 60000, 28, 28\] were expected"),
    "another label": (LABELS, lambda: idx(2049, 10_000, (), 10, 1000), "holds the label 10, and labels are 0 to 9"),
    "short": (LABELS, lambda: gzip.compress(gzip.decompress(idx(2049, 10_000, (), 9, 0))[:-1]), "holds 10007 bytes"),
    "long": (
        LABELS,
        lambda: gzip.compress(gzip.decompress(idx(2049, 10_000, (), 9, 0)) + b"0"),
        "holds more, and 10008",
    ),
    "nothing": (LABELS, lambda: gzip.compress(b""), r"begins with \[\]"),
    "no gzip": (LABELS, lambda: b"2049", "cannot be read, so it may be damaged: Not a gzipped file"),
    "cut off": (LABELS, lambda: idx(2049, 10_000, (), 9, 10)[:-10], "cannot be read"),
    "damaged": (LABELS, lambda: idx(2049, 10_000, (), 9, 10)[:10] + b"\xff" * 40, "cannot be read"),
}


@pytest.mark.parametrize(("name", "make", "message"), IDX.values(), ids=IDX)
def test_files_that_are_not_mnist(name, make, message, tmp_path):
    raw = fake_mnist(tmp_path, train=0, test=0)
    (raw / f"{name}.gz").write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        MNIST(root=tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_is_unpacked_than_mnist_holds(tmp_path):
    raw = fake_mnist(tmp_path, train=0, test=0)
    header = np.array([2049, 10_000], ">u4").tobytes()
    (raw / f"{LABELS}.gz").write_bytes(gzip.compress(header + bytes(200_000_000), 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more, and 10008 were expected"):
        _read(raw, LABELS, 2049, (10_000,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    (raw / LABELS).mkdir()
    with pytest.raises(ValueError, match="Is a directory"):
        MNIST(root=tmp_path)


def test_files_that_are_no_dsprites(tmp_path):
    path = tmp_path / "sprites.npz"
    whole = zipped(imgs=np.zeros((2, 4, 4), np.uint8), latents_classes=np.zeros((2, 6), np.int64))
    contents = [b"", b"text", saved(np.eye(3)), whole[:-30], whole[:40], zipped(imgs=[{}], latents_classes=[1])]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no \.npz file of numbers, or a damaged one") as caught:
            DSprites(path=path)
        assert "allow_pickle" not in str(caught.value)
