import gzip

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.data import CSV, MNIST, Array, Data, Digits, Dynamic, FashionMNIST, Static, as_data


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
    judged = data.fixed()
    assert torch.equal(judged.batch(slice(0, 50))[0], judged.batch(slice(0, 50))[0])
    assert torch.equal(judged.batch(slice(0, 50))[0], data.fixed().batch(slice(0, 50))[0])
    part = data.splits().test
    assert part.fixed().batch(slice(None))[0].unique().tolist() == [0.0, 1.0]


def test_splits_are_disjoint_seeded_and_complete():
    data = Data(torch.arange(100.0)[:, None], labels=torch.arange(100))
    train, validation, test = data.splits(validation=0.1, test=0.25, seed=3)
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


def write_idx(folder, name, array, header):
    folder.mkdir(parents=True, exist_ok=True)
    content = bytes(header) + array.astype(np.uint8).tobytes()
    (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def fake_mnist(root, folder="MNIST", train=30, test=10_000):
    raw = root / folder / "raw"
    rng = np.random.default_rng(0)
    for part, size in (("train", train), ("t10k", test)):
        write_idx(raw, f"{part}-images-idx3-ubyte", rng.integers(0, 256, (size, 28, 28)), 16)
        write_idx(raw, f"{part}-labels-idx1-ubyte", rng.integers(0, 10, size), 8)
    return raw


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_mnist_is_read_from_torchvisions_layout(tmp_path, source, monkeypatch):
    raw = fake_mnist(tmp_path, source.folder)
    data = source(root=tmp_path)
    assert len(data) == 10_030
    train, validation, test = data.splits()
    assert [len(part) for part in (train, validation, test)] == [25, 5, 10_000]
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
        (np.array([[np.nan]]), "holds nan at datum 0"),
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
    with pytest.raises(ValueError, match="a name a label: got 2 names for labels up to 2"):
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
