"""Row numbers in order and in random orders that are computed, not stored."""

import numpy as np
import pytest
import torch
from scipy import stats

import pyrovae
from pyrovae import guides, models
from pyrovae.common import rows as module
from pyrovae.common.rows import Rows, ascending, shuffled
from pyrovae.data import Array, Stream


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100, 4097, 100_003])
def test_a_random_order_holds_every_number_once(count):
    rows = Rows(count, key=7)
    numbers = rows[:]
    assert torch.equal(numbers.sort().values, torch.arange(count))
    assert torch.equal(torch.cat(list(rows.split(1000))), numbers)
    assert not torch.equal(numbers, Rows(count, key=8)[:]) or count < 100
    part = rows.part(count // 3, count)
    assert len(part) == count - count // 3
    assert torch.equal(part[:], numbers[count // 3 :])
    assert torch.equal(torch.cat(list(part.ascending(1000))), part[:].sort().values)
    assert torch.equal(part[torch.tensor([0, -1 + len(part)])], numbers[[count // 3, -1]])


def test_rows_in_order():
    rows = Rows(10)
    assert rows.is_whole
    assert rows[2:5].tolist() == [2, 3, 4]
    assert not rows.part(0, 5).is_whole
    assert [len(part) for part in rows.parts(5, 3, 2)] == [5, 3, 2]
    assert torch.equal(torch.cat(list(ascending(torch.tensor([3, 1, 2]), 2))), torch.tensor([1, 2, 3]))


def test_random_orders_are_even():
    """Every number is as often at every place, and neighbours are unrelated; fails with probability 4 x 1e-6."""
    orders = torch.stack([Rows(8, key=key)[:] for key in range(4000)]).numpy()
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    statistic = float(((counts - 500) ** 2 / 500).sum())
    assert statistic < stats.chi2.isf(1e-6, 49)
    pairs = np.bincount(orders[:, 0] * 8 + orders[:, 1], minlength=64).reshape(8, 8)[~np.eye(8, dtype=bool)]
    assert float(((pairs - 4000 / 56) ** 2 / (4000 / 56)).sum()) < stats.chi2.isf(1e-6, 55)
    long = Rows(100_000, key=3)[:].double()
    for other in (torch.arange(100_000.0).double(), long.roll(1)):
        correlation = float(torch.corrcoef(torch.stack([long, other]))[0, 1])
        assert abs(correlation) * 100_000**0.5 < stats.norm.isf(5e-7)


def test_an_order_is_computed_where_there_are_many(monkeypatch):
    assert isinstance(shuffled(100, torch.Generator().manual_seed(0)), torch.Tensor)
    monkeypatch.setattr(module, "LARGE", 50)
    first, again = (shuffled(100, torch.Generator().manual_seed(0)) for _ in range(2))
    assert isinstance(first, Rows)
    assert torch.equal(first[:], again[:])


@torch.random.fork_rng()
def test_large_sets_are_fitted_alike_in_memory_mapped_and_as_a_stream(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LARGE", 50)
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    losses = []
    for make in (
        lambda: Array(tmp_path / "x.npy"),
        lambda: Array(tmp_path / "x.npy", mapped=True),
        lambda: Stream(torch.utils.data.TensorDataset(torch.from_numpy(x)), fields=[0]),
    ):
        train, validation, test = make().splits(seed=1)
        assert sorted(np.concatenate([part.index for part in (train, validation, test)])) == list(range(200))
        assert isinstance(train.rows, Rows)
        torch.manual_seed(0)
        model = models.LinearGaussian(1, 3)
        fitted = pyrovae.fit(
            model, guides.Exact(model), train, validation_data=validation, epochs=3, batch_size=32, drop_last=True,
            compile=False, device="cpu", progress=False,
        )  # fmt: skip
        evaluation = pyrovae.evaluate(model, guides.Exact(model), test, num_particles=2, progress=False)
        losses.append([*fitted.history["loss"], float(evaluation.elbo.sum())])
        few = train.subset([3, 1]).index.tolist()
        assert few == train.index[[3, 1]].tolist()
    assert losses[0] == losses[1]
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-6)


def test_rows_outside_are_refused_and_counted_from_the_end():
    rows = Rows(100, key=3).part(10, 60)
    numbers = rows[:]
    assert rows[torch.tensor([-1])].tolist() == [int(numbers[-1])]
    mask = torch.zeros(50, dtype=torch.bool)
    mask[7] = True
    assert rows[mask].tolist() == [int(numbers[7])]
    for wrong in (torch.tensor([50]), torch.tensor([-51]), torch.ones(49, dtype=torch.bool)):
        with pytest.raises(IndexError):
            rows[wrong]
