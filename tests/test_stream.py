"""Data that do not fit in memory: a mapped file, and a torch Dataset."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bits, make_vae
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyrovae import data, fit, log_weights


class Squares(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, i):
        return (torch.full((1, 3, 4), float(i % 2)), i)


def anonymous_memory():
    """Memory of this process that no file backs, in bytes."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "bits.npy", bits(100).numpy())
    return tmp_path / "bits.npy"


def test_a_mapped_file_is_fitted_and_evaluated_as_the_array_in_memory(file):
    fits = []
    for mapped in (False, True):
        train, validation, test = data.Array(file, mapped=mapped).splits()
        fitted = fit(*make_vae(), train, validation_data=validation, epochs=2, batch_size=16, progress=False)
        fits.append(
            (
                fitted.history.drop(columns="seconds"),
                log_weights(fitted.model, fitted.guide, test, num_particles=3, progress=False),
            )
        )
    assert fits[0][0].equals(fits[1][0])
    assert fits[0][1].equal(fits[1][1])


def test_a_mapped_file_is_left_as_it_was(file):
    before = file.read_bytes()
    data.Array(file, mapped=True).batch(slice(0, 3))[0].zero_()
    assert file.read_bytes() == before


def test_bytes_of_a_mapped_file_become_numbers_in_the_batch(tmp_path):
    np.save(tmp_path / "bytes.npy", np.full((5, 2, 2), 255, np.uint8))
    plain = data.Array(tmp_path / "bytes.npy", mapped=True)
    assert plain.image_shape == (1, 2, 2)
    assert plain.batch(slice(0, 2))[0].equal(torch.full((2, 4), 255.0))
    assert data.Array(tmp_path / "bytes.npy", mapped=True, levels=255).batch(slice(0, 2))[0].equal(torch.ones(2, 4))


def test_a_mapped_file_declines_to_be_binarised(file):
    with pytest.raises(ValueError, match="binarise it once"):
        data.Array(file, mapped=True, binarise=data.Static())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_a_mapped_file(tmp_path):
    path = tmp_path / "large.npy"
    large = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(100_000, 784))
    large[:, ::7] = 1  # 314 MB
    del large
    model, guide = make_vae(data_dim=784)
    mapped = data.Array(path, mapped=True)
    fit(model, guide, mapped, steps=2, compile=False, progress=False)
    before = anonymous_memory()
    fit(model, guide, mapped.subset(slice(0, 90_000)), steps=500, batch_size=128, compile=False, progress=False)
    assert anonymous_memory() - before < 60e6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_fitted_as_its_tensors_are(workers):
    x = bits(100)
    stream = data.Stream(TensorDataset(x, torch.arange(100)), fields=(0,), num_workers=workers)
    options = {"epochs": 2, "batch_size": 16, "compile": False, "progress": False}
    one, other = (fit(*make_vae(), d, **options).history for d in (x, stream))
    assert one.drop(columns="seconds").equals(other.drop(columns="seconds"))


def test_a_dataset_is_split_and_evaluated(capsys):
    stream = data.Stream(Squares(), fields=(0,), image_shape=(1, 3, 4))
    train, _, test = stream.splits()
    assert (len(train), len(test)) == (35, 10)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert train.batch(slice(0, 35))[0][:, 0].equal((order[:35] % 2).float())
    assert log_weights(*make_vae(), test, num_particles=2, progress=False).shape == (2, 10)


def test_a_dataset_fit_resumes_to_the_same_end(tmp_path):
    stream = data.Stream(TensorDataset(bits(40)))
    options = {"batch_size": 16, "progress": False, "compile": False}
    whole = fit(*make_vae(), stream, steps=8, **options)
    fit(*make_vae(), stream, steps=4, checkpoint=tmp_path, **options)
    resumed = fit(*make_vae(), stream, steps=8, checkpoint=tmp_path, resume=True, **options)
    assert whole.history.drop(columns="seconds").equals(resumed.history.drop(columns="seconds"))


class Dicts(Dataset):
    """Items with a row of data, their number, and what makes no tensor."""

    def __init__(self, x, **others):
        self.x, self.others = x, others

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "number": i, **self.others}


@pytest.mark.parametrize("workers", [0, 2])
def test_fields_of_dicts_are_chosen_by_name(workers):
    x = bits(100)
    stream = data.Stream(Dicts(x, meta={"source": "nowhere"}), fields=("x",), num_workers=workers)
    one, other = (fit(*make_vae(), d, epochs=2, batch_size=16, progress=False).history for d in (x, stream))
    assert one.drop(columns="seconds").equals(other.drop(columns="seconds"))


def test_dicts_are_taken_whole_in_their_order():
    x = bits(10)
    rows = torch.tensor([7, 2])
    for fields, expected in ((None, (x[rows], rows)), (("number", "x"), (rows, x[rows]))):
        batch = data.Stream(Dicts(x), fields=fields).batch(rows)
        assert all(one.equal(other) for one, other in zip(batch, expected, strict=True))
    assert data.Stream(Squares(), fields=(-1,)).batch(rows)[0].equal(rows)
    assert (
        data.Stream(Dicts(x, picture=np.ones(3, np.uint8)), fields=("picture",))
        .batch(rows)[0]
        .equal(torch.ones(2, 3, dtype=torch.uint8))
    )


FIELDS = {
    "nested": (
        Dicts(bits(4), meta={"a": 1}),
        None,
        "field 'meta' of the dataset's items is a dict, which makes no tensor",
    ),
    "text": (Dicts(bits(4), name="a"), ("x", "name"), "field 'name' of the dataset's items is a str, .*'x', 'number'"),
    "number of a dict": (Dicts(bits(4)), (0,), "fields=.*: the dataset's items have no field 0, but 'x', 'number'"),
    "no such name": (Dicts(bits(4)), ("y",), "the dataset's items have no field 'y', but 'x', 'number'"),
    "beyond the item": (Squares(), (0, 2), r"fields=\(0, 2\): the dataset's items have no field 2, but 0, 1"),
    "before the item": (Squares(), (-3,), "the dataset's items have no field -3, but 0, 1"),
    "name of a sequence": (Squares(), ("x",), "the dataset's items have no field 'x', but 0, 1"),
    "none": (Squares(), (), "takes nothing of the dataset's items"),
}


@pytest.mark.parametrize(("dataset", "fields", "message"), FIELDS.values(), ids=FIELDS)
def test_fields_that_make_no_batch_are_named(dataset, fields, message):
    with pytest.raises(ValueError, match=message):
        data.Stream(dataset, fields=fields)


def test_a_dataset_without_random_access_is_declined():
    class Endless(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3)

    with pytest.raises(ValueError, match="no random access"):
        data.Stream(Endless())


def test_labels_are_kept():
    class Pictures(torch.utils.data.Dataset):
        targets, classes = [0, 1, 1, 0], ["a", "b"]

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.full((3,), float(index)), self.targets[index]

    stream = data.Stream(Pictures(), fields=(0,))
    assert stream.classes.tolist() == ["a", "b", "b", "a"]
    assert stream.subset([2, 3]).classes.tolist() == ["b", "a"]
    assert data.Stream(Pictures(), fields=(0,), labels=torch.tensor([1, 1, 0, -1])).labels.tolist() == [1, 1, 0, -1]
    with pytest.raises(ValueError, match="one label per observation: got 2 labels for 4"):
        data.Stream(Pictures(), fields=(0,), labels=torch.tensor([1, 1]))
