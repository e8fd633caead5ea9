"""Splits: at random, by strata, groups, times and given parts; folds of a cross-validation."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.data import Data, Digits, Table

N = 200
RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.normal(size=(N, 2)))
CLASSES = torch.from_numpy(RNG.choice(3, N, p=[0.6, 0.3, 0.1]))
SUBJECTS = RNG.integers(0, 30, N)
TIMES = RNG.integers(0, 50, N)


def numbers(parts):
    return [set(part.index.tolist()) for part in parts]


def a_partition(parts, count=N):
    sets = numbers(parts)
    assert sum(map(len, sets)) == len(set.union(*sets)) == count
    return sets


def frame():
    return pd.DataFrame(
        {
            "a": RNG.normal(size=N), "b": RNG.normal(size=N), "clinic": [f"c{k}" for k in SUBJECTS], "day": TIMES,
            "kind": [f"k{k}" for k in CLASSES.tolist()],
        }
    )  # fmt: skip


def test_strata_have_their_share_in_every_part():
    parts = Data(X, labels=CLASSES).splits(validation=0.2, test=0.2, stratify="label", seed=1)
    a_partition(parts)
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        for k in range(3):
            expected = share * int((CLASSES == k).sum())
            assert abs(int((part.labels == k).sum()) - expected) <= 1.5
    again = Data(X).splits(validation=0.2, test=0.2, stratify=CLASSES, seed=1)
    assert numbers(parts) == numbers(again)
    assert numbers(parts) != numbers(Data(X).splits(validation=0.2, test=0.2, stratify=CLASSES, seed=2))


def test_no_group_is_in_two_parts():
    parts = Data(X).splits(groups=SUBJECTS, test=0.3, seed=0)
    sets = a_partition(parts)
    groups = [set(SUBJECTS[list(part)]) for part in sets]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert 0.15 * N < len(sets[2]) < 0.45 * N


def test_a_table_is_split_by_its_subjects_and_by_named_columns():
    roles = {"clinic": "subject", "day": "time", "kind": "label"}
    table = Table(frame(), roles=roles)
    groups = [set(part.kept["clinic"]) for part in table.splits(seed=3)]
    assert not groups[0] & groups[2]
    train, validation, test = table.splits(time="day")
    assert train.kept["day"].max() < validation.kept["day"].min()
    assert validation.kept["day"].max() < test.kept["day"].min()
    a_partition(table.splits(stratify="kind"))
    with pytest.raises(ValueError, match="stratify names 'sex', which is no column of the set; it has a, b"):
        table.splits(stratify="sex")


def test_times_are_in_order_and_never_separated():
    train, validation, test = Data(X).splits(time=TIMES, validation=0.2, test=0.2)
    a_partition((train, validation, test))
    times = [TIMES[part.index] for part in (train, validation, test)]
    assert times[0].max() < times[1].min()
    assert times[1].max() < times[2].min()
    with pytest.raises(ValueError, match="the earliest times take up more"):
        Data(X).splits(time=np.zeros(N))


def test_parts_are_those_that_a_column_names():
    parts = np.array(["train"] * 150 + ["val"] * 20 + ["Test"] * 30)
    assert [len(part) for part in Data(X).splits(parts=parts)] == [150, 20, 30]
    with pytest.raises(ValueError, match="parts must be 'train', 'validation' or 'test', got 'other'"):
        Data(X).splits(parts=["other"] * N)
    with pytest.raises(ValueError, match="names no observation 'train'"):
        Data(X).splits(parts=["test"] * N)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": SUBJECTS, "time": TIMES}, "split in one way, got groups and time"),
        ({"groups": SUBJECTS[:5]}, "groups must have one value per observation, 200, got 5"),
        ({"time": [None] * N}, "time lacks a value for 200 of 200 observations, first for number 0"),
        ({"groups": np.zeros(N)}, "the set cannot be split by groups"),
        ({"stratify": np.arange(N)}, "the set cannot be split by stratify"),
        ({"validation": 0.7, "test": 0.5}, "leave nothing of 200 data"),
        ({"validation": 1.0}, r"shares in \[0, 1\) were expected"),
    ],
)
def test_splits_that_cannot_be_made(options, said):
    with pytest.raises(ValueError, match=said):
        Data(X).splits(**options)


def test_every_observation_is_tested_in_one_fold():
    for options in ({}, {"stratify": CLASSES}, {"groups": SUBJECTS}):
        folds = Data(X, labels=CLASSES).folds(5, seed=2, **options)
        assert sorted(k for fold in folds for k in fold.test.index) == list(range(N))
        for fold in folds:
            sets = a_partition(fold)
            if "groups" in options:
                groups = [set(SUBJECTS[list(part)]) for part in sets]
                assert not groups[0] & groups[2]
                assert not groups[0] & groups[1]
    with pytest.raises(ValueError, match="num_folds must be at most the number of observations, 200"):
        Data(X).folds(500)
    with pytest.raises(ValueError, match="cannot be split into 40 folds"):
        Data(X).folds(40, groups=SUBJECTS)


def test_folds_are_scaled_by_their_own_training_part():
    for fold in Table(frame()[["a", "b"]]).folds(3):
        torch.testing.assert_close(fold.train.batch(slice(None))[0].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
        assert fold.test.encoding.described() == fold.train.encoding.described()


def test_splits_at_random_are_those_of_before():
    """Saved runs depend on them."""
    train, validation, test = Digits().splits(seed=7)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(7))
    assert train.index.tolist() == order[: len(train)].tolist()
    assert test.index.tolist() == order[len(train) + len(validation) :].tolist()


def test_keys_with_the_rows_names_are_taken_by_name():
    table = Table(frame()[["a", "b"]].set_axis([f"r{k}" for k in range(N)]))
    order = RNG.permutation(N)
    key = pd.Series(TIMES[order], index=[f"r{k}" for k in order])
    one, other = (table.splits(time=times) for times in (key, TIMES))
    assert [part.index.tolist() for part in one] == [part.index.tolist() for part in other]


def test_ordered_categories_are_times_and_others_are_not():
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun"]
    cells = RNG.choice(months, N)
    parts = Data(X).splits(time=pd.Series(pd.Categorical(cells, months, ordered=True)), validation=0.0, test=0.3)
    assert "Jun" in set(cells[parts.test.index])
    assert "Jan" not in set(cells[parts.test.index])
    with pytest.raises(ValueError, match="time holds categories without an order"):
        Data(X).splits(time=pd.Series(pd.Categorical(cells, months)))


def test_two_columns_that_keep_rows_together_are_told():
    table = Table(frame().drop(columns="day"), roles={"clinic": "group", "kind": "subject"})
    with pytest.raises(ValueError, match="several columns that keep rows together, clinic, kind: say groups="):
        table.splits()
    a_partition(table.splits(groups="clinic"))


def test_a_later_table_without_its_groups_is_split_at_random():
    table = Table(frame().drop(columns="day"), roles={"clinic": "group"})
    later = Table.like(frame()[["a", "b", "kind"]], table.encoding)
    a_partition(later.splits())


def test_a_series_is_taken_by_the_rows_names_and_numbers():
    table = pd.DataFrame({"a": RNG.normal(size=12), "b": RNG.normal(size=12)})
    clinic = pd.Series(list("AAAABBBBCCCC"))
    for shuffled in (table, table.sample(frac=1, random_state=1)):
        for key in (clinic, clinic.sample(frac=1, random_state=2)):
            parts = Table(shuffled).splits(groups=key, validation=1 / 3, test=1 / 3)
            assert [len(set(clinic[part.index])) for part in parts] == [1, 1, 1]


def test_times_that_leave_a_part_empty_are_refused():
    table = Table(pd.DataFrame({"a": RNG.normal(size=100), "year": [2020] * 50 + [2021] * 50}), roles={"year": "time"})
    with pytest.raises(ValueError, match="equal times leave nothing for validation"):
        table.splits(time="year")
    assert [len(part) for part in table.splits(time="year", validation=0.0, test=0.5)] == [50, 0, 50]
