import math

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SIGMAS, bits, make_oracle, make_vae
from scipy import stats
from torch.distributions import kl_divergence

from pyrovae import (
    compare,
    comparison,
    draws_needed,
    evaluate,
    fit,
    guides,
    khat_limit,
    log_weights,
    nn,
    objectives,
    pareto_khat,
    plots,
    worst,
)
from pyrovae.diagnostics.crossed import crossed_df, crossed_error
from pyrovae.diagnostics.evidence.evaluate import Evaluation, weigh
from pyrovae.diagnostics.tables import formatted


def khat_by_arviz(column):
    if az.__version__.startswith("0."):
        return float(az.psislw(column[None, :].copy())[1][0])
    from arviz_stats.base import array_stats

    return float(array_stats.psislw(-column)[1])


def trained(guide, latent_dim=2, steps=600, correlated=False):
    model, x = make_oracle(latent_dim, 5, 60)
    model.requires_grad_(False)
    if correlated:
        model.weight.copy_(torch.tensor([1.0, 0.9]))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = guide(nn.MLP(5, 32, hidden=(32,)), latent_dim).double()
    fit(model, made, x, steps=steps, batch_size=60, lr=1e-2, progress=False)
    return model, made, x


@pytest.mark.parametrize("guide", [guides.MeanField, guides.FullRank, guides.Flow])
def test_evidence_agrees_with_the_closed_form(guide):
    model, made, x = trained(guide)
    result = evaluate(model, made, x, num_particles=4000, progress=False)
    exact = model.log_evidence(x)
    trusted = result.khat < 0.5  # where the central limit theorem holds for the weights
    assert trusted.float().mean() > 0.5
    deviations = ((result.log_evidence - exact) / result.log_evidence_se)[trusted]
    assert abs(float(deviations.mean())) < SIGMAS / math.sqrt(len(deviations)) + 0.1  # 0.1: bias of the logarithm
    assert float(deviations.abs().max()) < SIGMAS + 1  # 60 comparisons at 5 sigma: below 4e-5


def test_the_gap_is_the_kl_of_a_gaussian_guide():
    model, made, x = trained(guides.MeanField, steps=100)
    result = evaluate(model, made, x, num_particles=4000, progress=False)
    with torch.no_grad():
        q = made.posterior(x)
        full = dist.MultivariateNormal(q.base_dist.loc, q.base_dist.scale.square().diag_embed())
        kl = kl_divergence(full, model.posterior(x))
    gap = model.log_evidence(x) - result.elbo
    assert float(((gap - kl) / result.elbo_se).abs().max()) < SIGMAS + 1  # 60 comparisons at 5 sigma: below 4e-5
    torch.testing.assert_close(model.elbo(x, q.base_dist.loc, full.covariance_matrix), model.log_evidence(x) - kl)


def test_a_trained_mean_field_guide_reaches_the_best_of_its_family():
    model, made, x = trained(guides.MeanField, steps=3000)
    with torch.no_grad():
        best, q = (g.base_dist for g in (model.optimal_mean_field(x), made.posterior(x)))
        optimum, reached = (model.elbo(x, g.loc, g.scale.square().expand(60, 2).diag_embed()) for g in (best, q))
    assert float((optimum - reached).min()) > -1e-9  # nothing in the family is better
    assert float((optimum - reached).mean()) < 0.05


def test_a_guide_refitted_by_the_bound_of_ten_weights_is_the_better_proposal():
    """Weights of a diagonal D for a precision P have k = 1 - the least eigenvalue of D^-1/2 P D^-1/2."""
    model, made, x = trained(guides.MeanField, correlated=True)
    before = [p.clone() for p in model.parameters()]

    def tail(posterior):
        scale = posterior.base_dist.scale.detach().expand(len(x), 2)
        return 1 - torch.linalg.eigvalsh(scale[:, :, None] * model.precision() * scale[:, None, :])[:, 0]

    (a, b), (_, c) = model.precision().tolist()
    best = tail(model.optimal_mean_field(x))  # the ELBO's optimum has D = diag P
    torch.testing.assert_close(best, torch.full_like(best, b / math.sqrt(a * c)))  # 0.84
    bound = objectives.IWAE(10, estimator="dreg")
    fit(model, made, x, objective=bound, steps=1000, batch_size=60, lr=3e-3, progress=False)
    assert float(tail(made.posterior(x)).max()) < 0.5  # every observation's weights have a variance now
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_standard_errors_agree_with_repeats():
    model, made, x = trained(guides.FullRank)
    runs = [evaluate(model, made, x[:20], num_particles=200, seed=s, progress=False) for s in range(60)]
    for name in ("elbo", "log_evidence"):
        values = torch.stack([getattr(run, name) for run in runs])
        stated = torch.stack([getattr(run, f"{name}_se") for run in runs])
        ratio = values.var(0).mean().sqrt() / stated.square().mean(0).mean().sqrt()
        # a variance from 60 repeats of 20 data has relative error sqrt(2 / 1200): 4 sigma of the ratio of deviations
        assert abs(float(ratio) - 1) < SIGMAS * 0.5 * math.sqrt(2 / 1200) + 0.05  # 0.05: the delta method's own error


@pytest.mark.parametrize("scale", [0.2, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("num_particles", [100, 900, 2500])  # where ArviZ 0.23 and 1.x agree on the tail's length
def test_khat_is_arvizs_on_each_column(scale, num_particles):
    generator = torch.Generator().manual_seed(0)
    weights = scale * torch.randn(num_particles, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13) / 6
    if az.__version__.startswith("0."):
        weights[:, 5] = weights[:, 5].round()  # ties at the cutoff, which 1.x leaves in the tail
    ours = pareto_khat(weights - 1000)
    for column in range(12):
        assert float(ours[column]) == pytest.approx(khat_by_arviz(weights[:, column].numpy()), abs=1e-6)


def test_khat_of_a_guide_that_is_too_narrow():
    """q = N(0, s^2) for a standard normal posterior: the weights' tail index is 1 - s^2."""
    scale = 1 / 3
    generator = torch.Generator().manual_seed(0)
    z = scale * torch.randn(20_000, 40, generator=generator, dtype=torch.float64)
    khat = pareto_khat(dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.0, scale).log_prob(z))
    # the fit to a tail of M = 3 sqrt(K) = 425 weights has standard error (1 + k) / sqrt(M) = 0.09, so that 98% of the
    # columns are expected above 0.7; 8 or fewer of 40 below have a probability above 1 - 1e-6
    assert float((khat > 0.7).double().mean()) >= 0.8
    # 4 standard errors of a mean of 40, and as much for the bias of a finite tail
    assert float(khat.mean()) == pytest.approx(1 - scale**2, abs=2 * 4 * 0.092 / math.sqrt(40))


@pytest.mark.parametrize(("size", "limit"), [(100, 0.5), (200, 0.5654), (1000, 2 / 3), (2200, 0.7), (100_000, 0.7)])
def test_the_limit_of_khat_depends_on_the_number_of_weights(size, limit):
    assert khat_limit(size) == pytest.approx(limit, abs=1e-4)
    assert khat_limit(1) == -math.inf
    if size < 2200:  # as many weights are needed for a k-hat at the limit as there are
        assert float(draws_needed(torch.tensor(khat_limit(size), dtype=torch.float64))) == pytest.approx(size)


def test_the_number_of_draws_that_a_khat_needs():
    found = draws_needed(torch.tensor([-3.0, 0.0, 0.5, 0.7, 1.0, math.inf, math.nan]))
    assert found.tolist() == pytest.approx([10, 10, 100, 10 ** (1 / 0.3), math.inf, math.inf, math.inf], rel=1e-5)


def of_khat(khat, num_particles=1000, level=0.0):
    """An evaluation with these k-hats, its log evidence at a level, and an ELBO one nat below."""
    khat = torch.as_tensor(khat, dtype=torch.float64)
    noise = torch.linspace(-1, 1, len(khat), dtype=torch.float64)
    return Evaluation(
        elbo=level + noise - 1, elbo_se=0.1 + 0 * noise, log_evidence=level + noise, log_evidence_se=0.1 + 0 * noise,
        khat=khat, ess=1 + 0 * noise, num_particles=num_particles,
    )  # fmt: skip


def test_khat_is_held_against_its_limit_everywhere():
    khat = [0.1, 0.6, 0.69, 0.71, math.nan]
    for size, reliable in ((200, 1), (1000, 2), (5000, 3)):
        found = of_khat(khat, size)
        assert found.reliable.tolist() == [k < reliable for k in range(5)]
        assert found.summary()["khat_over_limit"] == 1 - reliable / 5
        assert found.summary()["khat_limit"] == found.khat_limit == khat_limit(size)
        assert worst(found)["reliable"].sum() == reliable
        assert comparison({"one": found}).loc["one", "khat_over_limit"] == 1 - reliable / 5
        limits = [
            line.get_xdata()[0] for line in plots.reliability(found).axes[0].lines if line.get_linestyle() == "--"
        ]
        assert limits == [khat_limit(size)]


def test_rows_whose_evidence_is_not_to_be_trusted_are_marked():
    """One in ten data may have weights that are not to be trusted; more mark the row, at every place."""
    shares = {"none": 0, "a tenth": 2, "a fifth": 4, "most": 18}
    evaluated = {n: of_khat([0.9] * c + [0.2] * (20 - c), level=-i) for i, (n, c) in enumerate(shares.items())}
    table = comparison(evaluated)
    assert table["reliable"].tolist() == [True, True, False, False]
    assert (
        comparison({n: [one, one] for n, one in evaluated.items()})["reliable"].tolist() == table["reliable"].tolist()
    )
    for figure in (plots.comparison(table), plots.pareto(table.assign(seconds=[1.0, 2.0, 3.0, 4.0]))):
        (legend,) = figure.legends or [figure.axes[0].get_legend()]
        assert any("unreliable" in text.get_text() for text in legend.get_texts())
    shown = formatted(table)
    assert shown["reliable"].tolist() == ["yes", "yes", "NO", "NO"]


def test_equal_weights_have_no_tail():
    model, x = make_oracle(2, 5, 40)
    result = evaluate(model, guides.Exact(model), x, num_particles=1000, progress=False)
    assert (result.khat == 0).all()
    assert result.summary()["khat_over_limit"] == 0
    huge = weigh(torch.tensor([[1e16], [1e16 - 40.0], [-1e16]], dtype=torch.float64))
    assert 1 <= float(huge["ess"]) <= 3


def test_data_that_the_model_rules_out_are_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(z * 0 - 1, z * 0 + 1, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="no particle of observation 1 has positive density"):
        evaluate(model, guide, torch.tensor([0.0, 3.0]), num_particles=5, progress=False)


def test_one_dominating_weight_or_too_few_particles_have_no_khat():
    weights = torch.zeros(100, 1)
    weights[0] = 1e6
    assert math.isinf(float(pareto_khat(weights)))
    assert math.isinf(float(pareto_khat(torch.randn(4, 1, generator=torch.Generator().manual_seed(0)))))


def test_weights_that_are_all_equal():
    fields = weigh(torch.full((100, 3), -90.0))
    torch.testing.assert_close(fields["log_evidence"], torch.full((3,), -90.0, dtype=torch.float64))
    torch.testing.assert_close(fields["ess"], torch.full((3,), 100.0, dtype=torch.float64))
    torch.testing.assert_close(fields["log_evidence_se"], torch.zeros(3, dtype=torch.float64))


def test_evaluation_streams_to_the_same_numbers():
    model, made, x = trained(guides.MeanField, steps=50)
    weights = log_weights(model, made, x, num_particles=300, progress=False)
    result = evaluate(model, made, x, num_particles=300, batch_size=7, progress=False)
    torch.testing.assert_close(result.log_evidence, weights.logsumexp(0) - math.log(300))
    torch.testing.assert_close(result.elbo, weights.mean(0))
    summary = result.summary()
    assert summary["num_data"] == 60
    assert summary["elbo"] == pytest.approx(float(weights.mean()))
    assert summary["log_evidence_se"] > summary["log_evidence_mc_se"] > 0


def test_compare_pairs_the_differences():
    model, made, x = trained(guides.MeanField, steps=300)
    with torch.random.fork_rng():
        other = guides.MeanField(nn.MLP(5, 8), 2).double()
    table = compare(
        {"untrained": (model, other), "exact": (model, guides.Exact(model)), "trained": (model, made)},
        x, num_particles=2000, progress=False,
    )  # fmt: skip
    assert table.loc["untrained", "elbo"] < table.loc["trained", "elbo"] < table.loc["exact", "elbo"]
    assert table["log_evidence"].is_monotonic_decreasing
    assert table["difference"].iloc[0] == 0
    assert table["difference_se"].iloc[0] == 0
    # one model, so one evidence: differences are noise, and far smaller than the unpaired standard error
    assert (table["difference"].abs() < SIGMAS * table["difference_se"] + 1e-9)[["exact", "trained"]].all()
    assert table.loc["trained", "difference_se"] < 0.2 * table.loc["trained", "log_evidence_se"]
    assert math.isnan(table.loc["exact", "seconds"])
    one, two = (evaluate(model, g, x, num_particles=2000, progress=False) for g in (guides.Exact(model), made))
    paired = (two.log_evidence - one.log_evidence).numpy()
    by_hand = comparison({"one": one, "two": two})
    assert by_hand["difference_se"].max() == pytest.approx(np.std(paired, ddof=1) / math.sqrt(len(paired)))


def test_the_same_pair_twice_does_not_differ():
    model, guide = make_vae()
    table = compare({"a": (model, guide), "b": (model, guide)}, torch.ones(5, 12), num_particles=20, progress=False)
    assert isinstance(table, pd.DataFrame)
    assert (table["difference"] == 0).all()


@pytest.mark.parametrize("candidates", [{}, {"a": 3}])
def test_compare_refuses_what_is_no_pair(candidates):
    with pytest.raises(ValueError, match=r"at least one candidate|a candidate is a Fit"):
        compare(candidates, torch.ones(2, 12), progress=False)


def several(values):
    """Evaluations, one per seed, whose log evidence is ``values`` [seeds, data]."""
    zero = torch.zeros(values.shape[1], dtype=torch.float64)
    fields = dict.fromkeys(("elbo_se", "log_evidence_se", "khat", "ess"), zero)
    return [Evaluation(elbo=row - 1, log_evidence=row, num_particles=10, **fields) for row in values]


def crossed(seeds, size, generator, by_seed=0.3, by_datum=1.0, rest=0.5):
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return by_seed * draw(seeds, 1) + by_datum * draw(1, size) + rest * draw(seeds, size)


def test_errors_over_seeds_and_data_are_those_of_repeats():
    generator = torch.Generator().manual_seed(0)
    sets = [crossed(5, 40, generator) for _ in range(2000)]
    spread = float(torch.stack([values.mean() for values in sets]).std())
    stated = torch.tensor([crossed_error(values) for values in sets]).square()
    exact = 0.3**2 / 5 + 1.0 / 40 + 0.25 / 200
    assert abs(float(stated.mean()) - exact) < SIGMAS * float(stated.std()) / math.sqrt(2000)  # unbiased
    assert abs(spread**2 - exact) < SIGMAS * exact * math.sqrt(2 / 2000)
    assert math.isnan(crossed_error(torch.zeros(3, 1)))


@pytest.mark.parametrize(("seeds", "level"), [(2, 0.9), (3, 0.93), (5, 0.95)])  # Satterthwaite's degrees are not exact
def test_intervals_by_students_t_hold_for_few_seeds(seeds, level):
    generator = torch.Generator().manual_seed(seeds)
    inside = 0
    for _ in range(1000):
        values = crossed(seeds, 100, generator, 0.3, 0.0, 0.5)
        half = stats.t.ppf(0.975, crossed_df(values)) * crossed_error(values)
        inside += abs(float(values.mean())) < half
    assert inside / 1000 > level - SIGMAS * math.sqrt(level * (1 - level) / 1000)


def test_errors_over_seeds_agree_with_a_bootstrap_of_both():
    generator = torch.Generator().manual_seed(1)
    values = crossed(12, 150, generator)
    rows, columns = (torch.randint(n, (4000, n), generator=generator) for n in values.shape)
    means = torch.stack([values[r][:, c].mean() for r, c in zip(rows, columns, strict=True)])
    assert float(means.std()) == pytest.approx(crossed_error(values), rel=0.1)  # 11 of 12, and rest counted thrice
    one = values[:1]
    means = torch.stack([one[0, c].mean() for c in columns])
    assert float(means.std()) == pytest.approx(crossed_error(one), rel=0.05)


def test_strategies_of_several_seeds():
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(1, 80, generator=generator, dtype=torch.float64)
    noise = {name: crossed(5, 80, generator, 0.05, 0.0, 0.1) for name in ("a", "again", "better")}
    values = {"a": data + noise["a"], "again": data + noise["again"], "better": data + noise["better"] + 1.0}
    table = comparison({name: several(v) for name, v in values.items()}, {"a": [1.0, 2.0, 3.0, 4.0, 5.0]})
    assert table.index[0] == "better"
    assert (table["seeds"] == 5).all()
    assert table.loc["a", "seconds"] == 3
    assert (table["difference"] < -4 * table["difference_se"]).iloc[1:].all()
    assert (table["difference_se"] < 0.5 * table["log_evidence_se"]).all()  # paired by observation
    same = comparison({"a": several(values["a"]), "again": several(values["again"])})
    assert abs(same["difference"].iloc[1]) < SIGMAS * same["difference_se"].iloc[1]
    with pytest.raises(ValueError, match="as many seeds as the others"):
        comparison({"a": several(values["a"]), "b": several(values["again"][:2])})


def test_a_strategy_of_several_seeds_is_asked_everything():
    pairs = [make_vae(seed=seed) for seed in range(2)]
    x = bits(30)
    table = compare(
        {"vae": pairs, "one guide": [(pairs[0][0], pairs[1][1]), pairs[1]]}, x, num_particles=20, with_latents=True,
        with_calibration=True, progress=False,
    )  # fmt: skip
    assert {"seeds", "seed_sd", "rate", "mutual_information", "latents_used", "sbc_pvalue"} <= set(table.columns)
    assert table.columns[-1] == "seconds"
    assert table["coverage_90"].between(0, 1).all()
    with pytest.raises(ValueError, match="as many seeds as the others"):
        compare({"a": pairs, "b": pairs[:1]}, x, progress=False)


def test_what_cannot_be_asked_of_a_pair_is_left_out_with_a_warning():
    model, guide = make_vae()
    with torch.random.fork_rng():
        planar = guides.Planar(nn.MLP(12, 8), guide.latent_dim)
    with pytest.warns(UserWarning, match="planar: the guide cannot score"):
        table = compare(
            {"mean field": (model, guide), "planar": (model, planar)}, bits(10), num_particles=5, with_latents=True,
            progress=False,
        )  # fmt: skip
    assert math.isnan(table.loc["planar", "rate"])
    assert not math.isnan(table.loc["mean field", "rate"])


def test_a_program_that_returns_nan_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            broken = torch.where(x > 9, math.nan, 0.0)
            pyro.sample("z", dist.Normal(broken, 1.0, validate_args=False))

    x = torch.zeros(200)
    x[150] = 10
    with pytest.raises(ValueError, match=r"observation 150 is not a finite number, first at site 'z'"):
        evaluate(model, guide, x, num_particles=10, progress=False)
