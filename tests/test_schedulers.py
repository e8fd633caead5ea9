"""Schedulers of the learning rate, and last batches."""

import inspect

import pytest
import torch
from conftest import bits, make_vae
from torch.optim import lr_scheduler

from pyrovae import fit
from pyrovae.data import Data
from pyrovae.training.batches import Batches
from pyrovae.training.group import Group

ARGUMENTS = {
    "CosineAnnealingLR": {"T_max": 5}, "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 1e-4, "max_lr": 1e-2},
    "ExponentialLR": {"gamma": 0.9}, "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch}, "LinearLR": {},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.95}, "MultiStepLR": {"milestones": [2, 4]},
    "OneCycleLR": {"max_lr": 1e-2, "total_steps": 20}, "PolynomialLR": {}, "ConstantLR": {},
    "ReduceLROnPlateau": {"patience": 1},
    "StepLR": {"step_size": 2},
}  # fmt: skip
COMBINED = {"ChainedScheduler", "SequentialLR", "LRScheduler"}
QUICK = {"batch_size": 10, "compile": False, "progress": False}


def maker(name):
    return lambda optimizer: getattr(lr_scheduler, name)(optimizer, **ARGUMENTS[name])


def test_every_scheduler_of_torch_is_tried():
    classes = {name for name in lr_scheduler.__all__ if inspect.isclass(getattr(lr_scheduler, name))}
    assert classes == set(ARGUMENTS) | COMBINED


@pytest.mark.parametrize("every", ["epoch", "step"])
@pytest.mark.parametrize("name", [n for n in ARGUMENTS if n != "ReduceLROnPlateau"])
def test_learning_rates_are_those_of_the_scheduler_alone(name, every):
    fitted = fit(*make_vae(), bits(30), epochs=4, lr=0.01, scheduler=maker(name), scheduler_every=every, **QUICK)
    alone = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler, expected = maker(name)(alone), []
    for step in range(12):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        if every == "step" or step % 3 == 2:
            scheduler.step()
    assert fitted.history["lr"].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_plateau_goes_by_the_validation_bound():
    def plateau(optimizer):
        return lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=100.0, threshold_mode="abs")

    rates = fit(*make_vae(), bits(30), scheduler=plateau, epochs=8, validation_data=bits(9), **QUICK).history["lr"]
    assert rates.unique().tolist() == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])


def test_a_resumed_fit_goes_on_with_its_scheduler(tmp_path):
    def combined(optimizer):
        parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.CosineAnnealingLR(optimizer, 6)]
        return lr_scheduler.SequentialLR(optimizer, parts, [2])

    options = {"epochs": 6, "scheduler": combined, "seed": 3, **QUICK}
    whole = fit(*make_vae(), bits(30), **options)
    fit(*make_vae(), bits(30), checkpoint=tmp_path / "b", **{**options, "epochs": 3})
    again = fit(*make_vae(), bits(30), checkpoint=tmp_path / "b", resume=True, **options)
    assert again.history["lr"].tolist() == whole.history["lr"].tolist()
    assert all(a.equal(b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="was made with"):
        fit(*make_vae(), bits(30), checkpoint=tmp_path / "b", resume=True, **{**options, "scheduler": maker("StepLR")})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": lr_scheduler.StepLR}, "cannot be made from the optimizer alone"),
        ({"scheduler": lambda optimizer: 3}, "must make a torch.optim.lr_scheduler, got 3"),
        ({"scheduler": "StepLR"}, "must be a function of the optimizer"),
        ({"scheduler": maker("StepLR"), "lr": lambda step: 0.1}, "give one of them"),
        ({"scheduler": maker("StepLR"), "scheduler_every": "batch"}, 'must be "epoch" or "step", got'),
        ({"drop_last": 1}, "drop_last must be True or False"),
        ({"least_batch": 0}, "least_batch must be a whole number of at least 1"),
    ],
)
def test_bad_schedules_get_one_sentence(options, said):
    with pytest.raises(ValueError, match=said):
        fit(*make_vae(), bits(30), epochs=1, **{**QUICK, **options})


@pytest.mark.parametrize(("count", "least", "sizes"), [
    (25, 1, [10, 10, 5]), (25, 10, [10, 10]), (25, 5, [10, 10, 5]), (25, 6, [10, 10]), (7, 10, [7]), (20, 10, [10, 10]),
    (11, 2, [10]),
])  # fmt: skip
def test_small_last_batches_are_left_out(count, least, sizes):
    batches = Batches(Data(bits(count)), 10, 0, Group(), least)
    epochs = [[indices for _, indices, _ in batches.between(k * len(sizes), (k + 1) * len(sizes))] for k in (0, 1)]
    for parts in epochs:
        assert [len(part) for part in parts] == sizes
        assert len(torch.cat(parts).unique()) == sum(sizes)
    if sum(sizes) < count:
        assert {*torch.cat(epochs[0]).tolist()} != {*torch.cat(epochs[1]).tolist()}


def test_batch_statistics_can_do_without_a_single_observation():
    model, guide = make_vae()
    guide.encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(12), guide.encoder)
    x = bits(21)
    fitted = fit(model, guide, x, epochs=2, least_batch=2, **QUICK)
    assert len(fitted.history) == 4
    assert len(fit(*make_vae(), x, epochs=2, drop_last=True, **QUICK).history) == 4
