"""How an observed site reads the batch: whole, in part, moved; data of its own that a model is given; odd programs."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import seeded
from torch import nn as torch_nn

import pyrovae
from pyrovae import guides, likelihoods, models, nn, objectives, priors
from pyrovae.data import Data, Field
from pyrovae.programs.origins import Origins
from pyrovae.programs.pair import Pair

QUIET = {"progress": False}
pytestmark = pytest.mark.own_state


def read(observe, *batch):
    """Return the layout of a pair that observes what ``observe`` makes of the batch."""

    def model(*given):
        with pyro.plate("data", len(given[0])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            observe(z, *given)

    def guide(*given):
        with pyro.plate("data", len(given[0])):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Pair(model, guide).read(batch)[0]


def site(value, name="x", events=1):
    shape = value.shape[value.dim() - events :]
    return pyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(events), obs=value)


X = torch.arange(5.0 * 4 * 3).reshape(5, 4, 3)
VIEWS = {
    "whole": lambda x: x,
    "step": lambda x: x[:, 1],
    "slice": lambda x: x[:, 1:3],
    "flat": lambda x: x.flatten(1),
    "turned": lambda x: x.transpose(1, 2),
    "reversed": lambda x: x.flip(1),
    "listed": lambda x: x[:, [3, 0]],
    "by index": lambda x: x.index_select(2, torch.tensor([2, 0])),
    "cast": lambda x: x[:, 0].double(),
    "copied": lambda x: x[:, 2].clone().contiguous(),
    "stacked": lambda x: torch.stack([x[:, 3], x[:, 0]], 1),
    "joined": lambda x: torch.cat([x[:, 3], x[:, 0]], -1),
    "filled": lambda x: x.nan_to_num(),
    "unbound": lambda x: x.unbind(1)[2],
    "masked": lambda x: torch.where(x > 0, x, 0.0),
    "masked by zeros": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "hidden": lambda x: x.masked_fill(x < 0, 0.0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_moves_cells_is_followed(name):
    seen = []

    def observe(z, x):
        seen.append(VIEWS[name](x))
        site(seen[-1], events=seen[-1].dim() - 1)

    (observed,) = read(observe, X).observed
    reading = observed.required_reading()
    torch.testing.assert_close(reading.of((X,)), seen[-1], check_dtype=True)
    other = torch.randn(7, 4, 3)
    (filled,) = reading.into((other,), VIEWS[name](-other))
    torch.testing.assert_close(VIEWS[name](filled), VIEWS[name](-other))
    untouched = filled == other
    assert int(untouched.sum()) == other.numel() - VIEWS[name](other).numel()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: x - 1, r"is a function \(sub\) of tensor 0 of the batch"),
        (lambda x: x.log1p(), r"is a function \(log1p\) of tensor 0"),
        (lambda x: torch.ones_like(x), "of the batch, so that no data can take its place"),
        (lambda x: torch.cat([x, x], -1), "reads a cell of the batch twice"),
        (lambda x: torch.stack([row.roll(k, 0) for k, row in enumerate(x)]), "other cells of the batch for one"),
        (lambda x: x.gather(1, x.argsort(1)), r"is a function \(gather\) of tensor 0"),
        (lambda x: x.clone().mul_(2), r"is a function \(mul_\) of tensor 0"),
    ],
)
def test_what_computes_is_not_and_says_so(make, reason):
    (observed,) = read(lambda z, x: site(make(x), events=make(x).dim() - 1), X).observed
    with pytest.raises(ValueError, match=reason):
        observed.required_reading()


def test_a_plate_of_steps_is_read_with_its_own_dimension():
    def observe(z, x):
        with pyro.plate("steps", 4, dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0).expand([4, len(x)]), obs=x[..., 0].T)

    (observed,) = read(observe, X).observed
    reading = observed.required_reading()
    torch.testing.assert_close(reading.of((X,)), X[..., 0].T)
    (filled,) = reading.into((X,), -X[..., 0].T)
    torch.testing.assert_close(filled[..., 0], -X[..., 0])
    torch.testing.assert_close(filled[..., 1:], X[..., 1:])


def test_whether_a_model_computes_with_what_it_observes():
    assert not read(lambda z, x: site(x, events=2), X).feeds_back
    assert read(lambda z, x: (x.sum(), site(x, events=2)), X).feeds_back
    other = torch.randn(5, 2)
    assert not read(lambda z, x, y: (y.sum(), site(x, events=2)), X, other).feeds_back  # covariates are given


def test_origins_leave_programs_as_they_are():
    with Origins((X,)):
        torch.testing.assert_close((X[:, 1] * 2).sum(), 2 * X[:, 1].sum())


# A decoder that is given its own data


def autoregressive(phi, length):
    """x_t ~ N(phi x_{t-1} + z, 1), all steps at once from the data as given."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            before = torch.nn.functional.pad(x[:, :-1], (1, 0))
            pyro.sample("x", dist.Normal(phi * before + z[:, None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1), 0.5))

    return model, guide


def test_data_of_a_teacher_forced_decoder_are_drawn_one_after_another():
    """The covariance of (x_1, ..., x_T) is known; each entry within 5 of its standard errors: fails below 1e-5."""
    phi, length, count = 0.8, 5, 4000
    model, _ = autoregressive(phi, length)
    x = pyrovae.simulate(model, torch.zeros(1, length), num_simulations=count, batch_size=1000, **QUIET).data.tensors[0]
    step = torch.eye(length) - phi * torch.diag(torch.ones(length - 1), -1)
    inverse = torch.linalg.inv(step)
    expected = inverse @ (torch.eye(length) + torch.ones(length, length)) @ inverse.T
    error = ((expected.square() + expected.diagonal()[:, None] * expected.diagonal()) / count).sqrt()
    assert bool(((x.T.cov() - expected).abs() < 5 * error).all())


def test_such_a_model_is_calibrated_under_its_exact_posterior():
    """Ranks of z under the exact posterior are uniform; the p-value is below 1e-4 once in 10,000 runs."""
    phi, length = 0.8, 4
    model, _ = autoregressive(phi, length)

    def exact(x):
        before = torch.nn.functional.pad(x[:, :-1], (1, 0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - phi * before).sum(1) / (length + 1), (length + 1) ** -0.5))

    found = pyrovae.sbc(model, exact, torch.zeros(1, length), num_simulations=400, num_draws=39, **QUIET)
    assert float(found.table()["adjusted"].min()) > 1e-4


def test_predictive_draws_of_such_a_model_are_drawn_one_after_another():
    phi, length = 0.8, 5
    model, guide = autoregressive(phi, length)
    x = torch.zeros(3, length)
    drawn = pyrovae.to_arviz(model, guide, x, num_draws=2000, num_particles=20, **QUIET).prior_predictive["x"]
    values = torch.from_numpy(drawn.to_numpy()[0, :, 0]).double()
    ahead = torch.nn.functional.pad(values[:, :-1], (1, 0))
    noise = (values - phi * ahead).T.cov()  # ones plus the identity
    assert bool(((noise - 1 - torch.eye(length)).abs() < 5 * math.sqrt(8 / 2000)).all())


def test_data_that_depend_on_each_other_in_a_circle_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(2 * x.flip(1) + z[:, None], 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="depends on itself in a circle"):
        pyrovae.simulate(model, torch.zeros(4, 3), **QUIET)


def test_a_weak_circle_which_dies_out_is_refused_too():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.1 * x.flip(1) + z[:, None], 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="depends on itself in a circle"):
        pyrovae.simulate(model, torch.zeros(4, 40), **QUIET)


def test_a_decoder_that_sums_the_data_so_far_draws_up_to_rounding():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            so_far = (x.cumsum(1) - x) / x.shape[1]  # has no x_t, up to rounding
            pyro.sample("x", dist.Normal(so_far + z[:, None], 1.0).to_event(1), obs=x)

    drawn = pyrovae.simulate(model, torch.zeros(1, 30), num_simulations=200, **QUIET)
    (x,), z = drawn.data.tensors, drawn.latents["z"]
    noise = x - (x.cumsum(1) - x) / 30 - torch.as_tensor(z).reshape(-1, 1)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / noise.numel())  # five standard errors: fails below 1e-6


def by_length(x, lengths):
    with pyro.plate("data", len(x)):
        for t in range(int(lengths.max())):
            with pyro.poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])


def guide_by_length(x, lengths):
    with pyro.plate("data", len(x)):
        for t in range(int(lengths.max())):
            with pyro.poutine.mask(mask=t < lengths):
                pyro.sample(f"z{t}", dist.Normal(x[:, t] / 2, 0.5**0.5))


SITES = {
    "simulate": lambda d: pyrovae.simulate(by_length, d, batch_size=10, **QUIET),
    "sbc": lambda d: pyrovae.sbc(by_length, guide_by_length, d, num_draws=9, batch_size=10, **QUIET),
    "pit": lambda d: pyrovae.pit(by_length, d, num_draws=9, batch_size=10, **QUIET),
    "to_arviz": lambda d: pyrovae.to_arviz(by_length, guide_by_length, d, num_draws=2, batch_size=10, **QUIET),
    "hmc": lambda d: pyrovae.hmc(by_length, guide_by_length, d, num_chains=2, num_warmup=20, num_draws=20, **QUIET),
}


@pytest.mark.parametrize("name", SITES)
def test_sites_that_only_some_batches_have_are_refused(name):
    data = (torch.randn(20, 6), torch.tensor([3] * 10 + [6] * 10))
    with pytest.raises(ValueError, match=r"site 'x\d' for some batches and not for others, but all must have the same"):
        SITES[name](data)


def with_normal(observe, loc=lambda z, x: z[:, None]):
    """A model of z ~ N(0, 1) and x_d ~ N(z, 1/4) that observes what ``observe`` makes of the batch."""

    def model(*batch):
        with pyro.plate("data", len(batch[0])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for name, value in observe(*batch).items():
                pyro.sample(name, dist.Normal(loc(z, batch[0]).expand(value.shape), 0.5).to_event(1), obs=value)

    return model


def in_place(x):
    y = x.clone()
    y[:, :2] = y[:, :2] * 2
    return {"x": y}


def clamped(x):
    y = x.clone()
    y[:, :2].clamp_(0.0)
    return {"x": y}


OTHERWISE = {
    "a slice written to": in_place,
    "a slice clamped": clamped,
    "overlapping sites": lambda x: {"a": x[:, :3], "b": x[:, 2:]},
    "two sites": lambda x: {"a": x, "b": x},
    "relu by where": lambda x: {"x": torch.where(x > 0, x, 0.0)},
    "relu by fill": lambda x: {"x": x.masked_fill(x < 0, 0.0)},
    "rounded": lambda x: {"x": x.long().float()},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_model_that_observes_otherwise_than_it_draws_is_refused(name):
    with pytest.raises(ValueError, match=r"does not observe what was drawn for it|is a function"):
        pyrovae.simulate(with_normal(OTHERWISE[name]), torch.randn(50, 5), **QUIET)


def test_missing_cells_that_are_filled_and_scored_are_refused():
    x = torch.randn(50, 5)
    x[::3, 1] = torch.nan
    filled = with_normal(lambda x: {"x": x.nan_to_num()})
    with pytest.raises(ValueError, match="does not observe what was drawn for it"):
        pyrovae.simulate(filled, Data(x, missing=True), **QUIET)


def test_groups_with_columns_of_their_own_are_refused_in_any_order():
    group = torch.arange(400) // 200
    observe = lambda a, b, g: {"x": torch.where((g == 0)[:, None], a, b)}  # noqa: E731
    for order in (torch.arange(400), torch.randperm(400)):
        with pytest.raises(ValueError, match="so that no data can take its place"):
            pyrovae.simulate(with_normal(observe), (torch.randn(400, 3), torch.randn(400, 3), group[order]), **QUIET)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int8])
def test_draws_are_not_rounded_to_the_data_s_whole_numbers(dtype):
    drawn = pyrovae.simulate(
        with_normal(lambda x: {"x": x.float()}), torch.zeros(1, 4, dtype=dtype), num_simulations=2000, **QUIET
    )
    residual = drawn.data.tensors[0] - drawn.latents["z"].reshape(-1, 1)
    assert abs(float(residual.var()) - 0.25) < 5 * 0.25 * math.sqrt(2 / 8000)  # five standard errors: below 1e-6


def test_feedback_by_a_condition_or_by_numpy_is_seen():
    """d = dose of the drawn t; y - z - 3 d has standard deviation 1/2, within five of its standard errors."""

    def by(chosen):
        def model(t, dose, y):
            with pyro.plate("data", len(t)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("t", dist.Bernoulli(0.5), obs=t.float())
                pyro.sample("y", dist.Normal(z + 3 * chosen(t, dose), 0.5), obs=y)

        return model

    ways = [
        lambda t, dose: torch.where(t, dose[:, 1], dose[:, 0]),
        lambda t, dose: torch.as_tensor(t.numpy() * dose[:, 1].numpy() + ~t.numpy() * dose[:, 0].numpy()),
    ]
    for chosen in ways:
        data = (torch.rand(1000) < 0.5, torch.randn(1000, 2), torch.randn(1000))
        drawn = pyrovae.simulate(by(chosen), data, device="cpu", **QUIET)  # where tensors are NumPy's, too
        t, dose, y = drawn.data.tensors
        residual = y - drawn.latents["z"].flatten() - 3 * chosen(t.bool(), dose)
        assert abs(float(residual.var()) - 0.25) < 5 * 0.25 * math.sqrt(2 / 1000)


def test_feedback_of_what_is_a_function_of_the_data_is_refused():
    def make(phi):
        def model(x):
            y = x.log()
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                before = torch.nn.functional.pad(y[:, :-1], (1, 0))
                pyro.sample("y", dist.Normal(phi * before + z[:, None], 1.0).to_event(1), obs=y)

        return model

    x = torch.rand(20, 4) + 0.5
    assert pyrovae.pit(make(0.0), x, num_draws=9, **QUIET).values.shape == (20, 4)
    with pytest.raises(ValueError, match="depend on a tensor of which it observes a function at site 'y'"):
        pyrovae.pit(make(0.8), x, num_draws=9, **QUIET)


CIRCLES = {
    "its own cell": lambda z, x: dist.Normal(z[:, None] + 0.5 * x, 0.5),
    "its own bit": lambda z, x: dist.Bernoulli(logits=z[:, None] + 2 * (2 * x - 1)),
    "neighbouring bits": lambda z, x: dist.Bernoulli(
        logits=z[:, None] + 0.4 * (2 * (x.roll(1, 1) + x.roll(-1, 1)) - 2)
    ),
    "all cells": lambda z, x: dist.Normal((z + 0.3 * x.mean(1))[:, None].expand(x.shape), 1.0),
}


@pytest.mark.parametrize("name", CIRCLES)
def test_circles_are_refused_even_where_runs_settle(name):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", CIRCLES[name](z, x).to_event(1), obs=x)

    with pytest.raises(ValueError, match="depends on itself in a circle"):
        pyrovae.simulate(model, torch.bernoulli(torch.full((200, 16), 0.5)), **QUIET)


@pytest.mark.parametrize("weight", [1e-6, 1e-3, 0.3, 3.0])
@pytest.mark.parametrize("discrete", [False, True])
def test_chains_are_no_circles(weight, discrete):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z[:, None] + weight * torch.nn.functional.pad(x[:, :-1], (1, 0))
            pyro.sample("x", (dist.Bernoulli(logits=loc) if discrete else dist.Normal(loc, 1.0)).to_event(1), obs=x)

    assert len(pyrovae.simulate(model, torch.bernoulli(torch.full((100, 20), 0.5)), **QUIET)) == 100


def test_operations_that_numbers_of_cells_do_not_take_are_computations():
    (observed,) = read(lambda z, x: (torch.view_as_complex(x[..., :2].contiguous()), site(x, events=2)), X).observed
    assert observed.reading is not None


def test_dreams_of_such_a_model_are_refused():
    model, _ = autoregressive(0.8, 3)
    net = torch_nn.Linear(3, 1)

    def learned(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x)[:, 0], 0.5))

    with pytest.raises(ValueError, match="one run of it makes no dream"):
        pyrovae.fit(model, learned, torch.randn(9, 3), objective=objectives.WakeSleep(3, sleep=0.5), steps=1, **QUIET)


def test_dreams_of_a_model_that_will_feed_back_are_refused():
    weight = torch_nn.Linear(3, 3, bias=False)
    torch_nn.init.zeros_(weight.weight)

    def model(x):
        pyro.module("weight", weight)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None] + weight(x).roll(1, 1), 1.0).to_event(1), obs=x)

    _, guide = autoregressive(0.8, 3)
    with pytest.raises(ValueError, match="one run of it makes no dream"):
        pyrovae.fit(model, guide, torch.randn(9, 3), objective=objectives.WakeSleep(3, sleep=0.5), steps=1, **QUIET)
    assert bool((weight.weight == 0).all())


# Three programs of kinds that the catalogue does not have


class DeepMarkov(torch_nn.Module):
    """z_t ~ N(A z_{t-1}, 1/4), x_t ~ N(W z_t, 1), of sequences that end: a mask says where."""

    def __init__(self):
        super().__init__()
        self.transition, self.emission = torch_nn.Linear(2, 2), torch_nn.Linear(2, 3)
        self.network, self.head = torch_nn.GRU(3, 8, batch_first=True), torch_nn.Linear(10, 4)

    def model(self, x, mask):
        pyro.module("markov", self)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(x.shape[1]):
                with pyro.poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z{t}", dist.Normal(self.transition(z), 0.5).to_event(1))
                    pyro.sample(f"x{t}", dist.Normal(self.emission(z), 1.0).to_event(1), obs=x[:, t])

    def guide(self, x, mask):
        hidden, _ = self.network(x)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(x.shape[1]):
                loc, scale = self.head(torch.cat([hidden[:, t], z], 1)).chunk(2, 1)
                with pyro.poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z{t}", dist.Normal(loc, scale.exp()).to_event(1))


class TwoViews(torch_nn.Module):
    """One z, seen as bits and as numbers."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.MLP(2, 6, hidden=(8,)), nn.MLP(2, 3, hidden=(8,))
        self.encoder = nn.MLP(9, 4, hidden=(8,))

    def model(self, a, b):
        pyro.module("views", self)
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("a", dist.Bernoulli(logits=self.left(z)).to_event(1), obs=a)
            pyro.sample("b", dist.Normal(self.right(z), 1.0).to_event(1), obs=b)

    def guide(self, a, b):
        loc, scale = self.encoder(torch.cat([a, b], 1)).chunk(2, 1)
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Codebook(torch_nn.Module):
    """A code of a book, and numbers around its entry; straight through, in the guide, to the nearest."""

    def __init__(self):
        super().__init__()
        self.book, self.decoder, self.encoder = torch_nn.Embedding(5, 2), nn.MLP(2, 4), nn.MLP(4, 5)

    def model(self, x):
        pyro.module("codebook", self)
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", dist.Categorical(logits=torch.zeros(5)))
            pyro.sample("x", dist.Normal(self.decoder(self.book(code)), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Categorical(logits=self.encoder(x)))


def sequences():
    lengths = torch.randint(2, 5, (40, 1))
    return torch.randn(40, 4, 3), torch.arange(4) < lengths


PROTOTYPES = {
    "deep Markov": (DeepMarkov, sequences),
    "two views": (TwoViews, lambda: (torch.bernoulli(torch.full((40, 6), 0.5)), torch.randn(40, 3))),
    "codebook": (Codebook, lambda: (torch.randn(40, 4),)),
}
ASKED = {
    "evaluate": lambda m, g, d: pyrovae.evaluate(m, g, d, num_particles=20, **QUIET).log_evidence.isfinite().all(),
    "to_arviz": lambda m, g, d: pyrovae.to_arviz(m, g, d, num_draws=5, num_particles=20, **QUIET).posterior is not None,
    "simulate": lambda m, g, d: len(pyrovae.simulate(m, d, **QUIET)) == 40,
    "sbc": lambda m, g, d: pyrovae.sbc(m, g, d, num_simulations=20, num_draws=19, **QUIET).table().notna().any().any(),
    "pit": lambda m, g, d: len(pyrovae.pit(m, d, num_draws=19, **QUIET)) == 40,
    "gaps": lambda m, g, d: pyrovae.gaps(m, g, d, num_particles=5, num_steps=3, **QUIET).amortization.isfinite().all(),
    "sample_quality": lambda m, g, d: pyrovae.sample_quality(m, d, **QUIET).notna().all().all(),
    "aggregate": lambda m, g, d: pyrovae.aggregate(m, g, d, **QUIET).rate.isfinite().all(),
}
REFUSED = {
    ("deep Markov", "gaps"): "'z1' depends on another draw",
    ("deep Markov", "aggregate"): "is masked for some data",
    ("codebook", "gaps"): "'code' is discrete",
}


@pytest.mark.parametrize("name", PROTOTYPES)
def test_prototypes_are_asked_everything_or_refused_for_the_true_reason(name):
    make, data = PROTOTYPES[name]
    program, batch = seeded(lambda: (make(), data()))
    objective = pyro.infer.Trace_ELBO() if name != "codebook" else objectives.VIMCO(4)
    with_params = (program.model, program.guide)
    fitted = pyrovae.fit(*with_params, batch, objective=objective, epochs=2, **QUIET)
    assert fitted.history["loss"].notna().all()
    for question, ask in ASKED.items():
        if (name, question) in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[name, question]):
                ask(fitted.model, fitted.guide, batch)
        else:
            assert bool(ask(fitted.model, fitted.guide, batch)), question


def test_all_views_are_ranked_and_scored():
    program, batch = seeded(lambda: (TwoViews(), PROTOTYPES["two views"][1]()))
    names = pyrovae.pit(program.model, batch, num_draws=9, **QUIET).names
    assert names == (*(f"a[{d}]" for d in range(6)), *(f"b[{d}]" for d in range(3)))
    seen = []
    pyrovae.sample_quality(
        program.model, batch, features=lambda a, b: seen.append((a, b)) or torch.cat([a, b], 1), **QUIET
    )
    assert [tuple(t.shape) for t in seen[0]] == [(20, 6), (20, 3)]
    with pytest.raises(ValueError, match="a statistic is of one of them: name it, site='a'"):
        pyrovae.prior_predictive_check(program.model, program.guide, batch, {"mean": torch.mean}, num_sets=5, **QUIET)


# A record per tensor


def test_every_tensor_has_its_own_scale_names_and_missing_values():
    numbers = torch.tensor([[1.0, 20.0], [3.0, torch.nan], [5.0, 60.0]])
    grey = torch.tensor([[0, 255], [51, 102], [255, 0]], dtype=torch.uint8)
    data = Data(
        Field(grey, name="pixels", levels=255), Field(numbers, name="table", missing=True, standardise=True,
        feature_names=["a", "b"]),
    )  # fmt: skip
    pixels, table = data.batch(slice(0, 3))
    torch.testing.assert_close(pixels, grey / 255)
    torch.testing.assert_close(table[:, 0], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5)
    assert data.missing
    assert table[1, 1].isnan()
    assert [f.feature_names for f in data.fields] == [None, ["a", "b"]]
    with pytest.raises(ValueError, match="levels was given beside a Field"):
        Data(Field(grey), levels=255)


def test_names_of_any_tensor_label_what_is_observed():
    program, (a, b) = seeded(lambda: (TwoViews(), PROTOTYPES["two views"][1]()))
    data = Data(Field(a, name="bits"), Field(b, name="numbers", feature_names=["u", "v", "w"]))
    found = pyrovae.to_arviz(program.model, program.guide, data, num_draws=2, num_particles=5, **QUIET)
    assert list(found.observed_data["b"].coords["b_dim"].to_numpy()) == ["u", "v", "w"]
    assert pyrovae.pit(program.model, data, num_draws=9, **QUIET).names[-3:] == ("b[u]", "b[v]", "b[w]")


def test_a_view_may_be_missing_whole():
    a, b = torch.ones(3, 2), torch.ones(3, 4)
    a[1], b[2] = torch.nan, torch.nan
    assert len(Data(Field(a, missing=True), Field(b, missing=True))) == 3
    b[1] = torch.nan
    with pytest.raises(ValueError, match="observation 1 has no observed value in any of tensors 0, 1"):
        Data(Field(a, missing=True), Field(b, missing=True))
    with pytest.raises(
        ValueError, match=r"tensor 1 of the data holds nan at observation 1 .*Field\(tensor, missing=True"
    ):
        Data(torch.ones(3, 2), b)


def test_bits_of_two_fields_are_drawn_independently():
    half = torch.full((4000, 1), 0.5)
    for binarise in (pyrovae.data.Static(), pyrovae.data.Dynamic()):
        one, other = Data(Field(half, binarise=binarise), Field(half, binarise=binarise)).fixed().tensors
        correlation = float(torch.cat([one, other], 1).double().T.corrcoef()[0, 1])
        assert abs(correlation) < 5 / 4000**0.5  # five standard errors: fails below 1e-6


def test_a_mapped_field_is_not_standardised_by_all_rows():
    with pytest.raises(ValueError, match="a set that is mapped cannot be standardised"):
        Data(Field(torch.randn(20, 2), standardise=True), mapped=True)


def test_where_a_field_is_decoded_is_part_of_the_fingerprint():
    x, a = torch.ones(5, 2), torch.arange(10.0).reshape(5, 2)
    assert Data(x, Field(a, levels=255), a).fingerprint() != Data(x, a, Field(a, levels=255)).fingerprint()


def test_missing_labels_do_not_count_as_labels():
    """Half of the labels are missing; their ranks are drawn at random, so that the p-value is below 1e-4 by chance."""
    model = seeded(
        lambda: models.SemiSupervisedVAE(
            num_classes=3, prior=priors.StandardNormal(2), decoder=nn.MLP(5, 4), likelihood=likelihoods.Bernoulli()
        )
    )
    labels = torch.where(torch.arange(400) < 200, -1, 0)
    made = pyrovae.simulate(model, (torch.zeros(400, 4), labels), **QUIET).data
    assert int((made.tensors[1] == -1).sum()) == 200
    table = pyrovae.pit(model, made, num_draws=49, seed=1, **QUIET).table()
    assert float(table.loc["label[0]", "pvalue"]) > 1e-4


def test_roles_are_held_to():
    program, (a, b) = seeded(lambda: (TwoViews(), PROTOTYPES["two views"][1]()))
    with pytest.raises(ValueError, match=r"tensor 1 \(numbers\) of the data is a covariate by its role"):
        pyrovae.evaluate(program.model, program.guide, Data(a, Field(b, name="numbers", role="covariate")), **QUIET)
    with pytest.raises(ValueError, match="role must be"):
        Data(Field(a, role="label"))
    model = models.ConditionalVAE(
        prior=priors.StandardNormal(2), decoder=nn.MLP(5, 6), likelihood=likelihoods.Bernoulli()
    )
    guide = guides.MeanField(nn.MLP(9, 4), 2)
    with pytest.raises(ValueError, match="tensor 1 of the data is observed by its role, but no site"):
        pyrovae.evaluate(model, guide, Data(a, Field(b, role="observed")), num_particles=2, **QUIET)


def test_a_part_keeps_the_numbers_of_the_whole():
    data = Data(torch.randn(20, 5))
    part = data.splits(seed=0).test
    assert sorted(part.index) == sorted(set(part.index))
    torch.testing.assert_close(data.tensors[0][torch.from_numpy(part.index)], part.tensors[0])
    again = part.subset([2, 0])
    assert list(again.index) == [part.index[2], part.index[0]]
    model = models.LinearGaussian(2, 5)
    found = pyrovae.to_arviz(model, guides.Exact(model), again, num_draws=2, num_particles=5, **QUIET)
    assert list(found.posterior.coords["datum"].to_numpy()) == list(again.index)
    evaluated = pyrovae.evaluate(model, guides.Exact(model), again, num_particles=5, **QUIET)
    assert list(evaluated.table().index) == list(again.index)
    assert sorted(pyrovae.worst(evaluated).index) == sorted(again.index)
    assert list(pyrovae.worst(evaluated)["khat"]) == sorted(evaluated.khat.tolist(), reverse=True)
