import functools
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import bits, make_vae
from torch import nn

from pyrovae import evaluate, fit
from pyrovae.programs.modules import reachable_modules
from pyrovae.programs.pair import Pair


def good_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def good_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def no_plate(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def no_plate_guide(x):
    pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))


def global_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)


def global_guide(x):
    pyro.sample("w", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
    good_guide(x)


def observed_outside(x):
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=x.sum())
    good_model(x)


def wrong_dim(x):
    with pyro.plate("views", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, None])


def wrong_dim_guide(x):
    with pyro.plate("views", 2, dim=-1), pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(x[:, None], 1.0))


def extra_guide(x):
    good_guide(x)
    with pyro.plate("more", len(x)):
        pyro.sample("u", dist.Normal(0.0, 1.0))


def observing_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0), obs=x)


def unobserved(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def short_plate(x):
    with pyro.plate("data", len(x) - 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[1:])


def short_guide(x):
    with pyro.plate("data", len(x) - 1):
        pyro.sample("z", dist.Normal(x[1:], 1.0))


def batch_shape_left(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.expand(3, len(x)), 1.0), obs=x)


def unguided(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("v", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


BROKEN = {
    "no data plate": (no_plate, no_plate_guide, "no data plate around site 'z'"),
    "plate at another dim": (wrong_dim, wrong_dim_guide, r"plate 'data' has length 5 at dim -2"),
    "plate of another length": (short_plate, short_guide, r"plate 'data' has length 4 at dim -1, but the batch has 5"),
    "observation outside": (observed_outside, good_guide, "observed site 'y' is outside the data plate"),
    "guide site without model site": (good_model, extra_guide, "site 'u' of the guide is not in the model"),
    "guide observes": (good_model, observing_guide, "site 'z' of the guide is observed"),
    "nothing observed": (unobserved, good_guide, "the model observes nothing"),
    "batch shape outside the plates": (batch_shape_left, good_guide, "site 'x' of the model cannot be scored"),
    "latent that the guide lacks": (unguided, good_guide, "latent site 'v' of the model is not sampled by the guide"),
    "model fails": (lambda x: 1 / 0, good_guide, r"the model fails on a batch of \(5,\) float32: ZeroDivisionError"),
    "guide fails": (good_model, lambda x: x @ torch.ones(7), r"the guide fails on a batch of \(5,\) float32: RuntimeE"),
    "model is a class": (nn.Linear, good_guide, "the model must be a callable"),
    "guide is none": (good_model, None, "the guide must be a callable"),
}


@pytest.mark.parametrize(("model", "guide", "message"), BROKEN.values(), ids=BROKEN)
def test_a_pair_that_breaks_the_contract_is_refused(model, guide, message):
    x = torch.zeros(5)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(model, guide, x, num_particles=2, progress=False)
    assert "\n" not in str(caught.value).split(":")[0]
    with pytest.raises(ValueError, match=message):
        fit(model, guide, x, steps=1, progress=False)


def test_a_global_latent_trains_but_has_no_answer_per_datum():
    x = torch.randn(20, generator=torch.Generator().manual_seed(0)) + 3
    fitted = fit(global_latent, global_guide, x, steps=300, lr=0.05, progress=False)
    optimum = float((x / 2).sum()) / 21  # of -m^2 / 2 - sum (x - z - m)^2 / 2 with E z = x / 2
    assert fitted.guide.store["params"]["m"].item() == pytest.approx(optimum, abs=0.3)
    assert fitted.history["bound"].notna().all()
    with pytest.raises(ValueError, match="latent site 'w' is outside the data plate"):
        evaluate(fitted.model, fitted.guide, x, progress=False)


def test_an_auxiliary_site_outside_the_plate_has_no_answer_per_datum():
    def guide(x):
        pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        good_guide(x)

    with pytest.raises(ValueError, match="latent site 'u' is outside the data plate"):
        evaluate(good_model, guide, torch.zeros(5), progress=False)


def test_another_plate_of_the_batchs_length_is_not_mistaken_for_the_data():
    def model(x):
        with pyro.plate("topics", 6):
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("people", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("topics", 6):
            pyro.sample("w", dist.Normal(pyro.param("m", torch.zeros(6)), 1.0))
        with pyro.plate("people", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    assert len(fit(model, guide, torch.zeros(6), steps=2, progress=False).history) == 2


def test_supports_that_differ_between_data():
    totals = torch.cat([torch.full((64,), 20.0), torch.full((64,), 40.0)])

    def model(x, n):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(n, logits=z), obs=x)

    def guide(x, n):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert evaluate(model, guide, (totals - 1, totals), num_particles=3, progress=False).elbo.isfinite().all()


def test_a_guide_on_part_of_the_support_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(torch.ones_like(x), 1.0))

    with pytest.raises(ValueError, match=r"latent site 'z' has support Real\(\) in the model but Greater"):
        evaluate(good_model, guide, torch.zeros(5), progress=False)

    def positive(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"guides of pyrovae take support="):
        evaluate(positive, good_guide, torch.full((5,), -3.0), progress=False)


def test_a_latent_inside_in_one_program_only():
    def outside(x):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))

    with pytest.raises(ValueError, match="latent site 'z' is inside the data plate in one program"):
        evaluate(good_model, outside, torch.zeros(5), progress=False)


def test_a_plate_whose_length_is_not_read_from_the_batch():
    def model(x):
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="programs must read the number of data from their batch"):
        evaluate(model, guide, torch.zeros(5), num_particles=3, progress=False)


def test_any_plate_of_the_batchs_length_at_dim_minus_one_will_do():
    def model(x):
        with pyro.plate("people", len(x)):
            z = pyro.sample("ability", dist.Normal(0.0, 1.0))
            pyro.sample("score", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("people", len(x)):
            pyro.sample("ability", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    result = evaluate(model, guide, x, num_particles=10, progress=False)
    torch.testing.assert_close(result.elbo.float(), dist.Normal(0.0, 2**0.5).log_prob(x), atol=1e-5, rtol=0)


def test_layout():
    model, guide = make_vae()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        layout, _, _ = Pair(model, guide).read((bits(4),))
    assert layout.latents == ("z",)
    assert [site.name for site in layout.observed] == ["x"]
    assert layout.observed[0].source == 0
    assert (layout.num_data, layout.plate, layout.global_latents) == (4, "data", ())


with torch.random.fork_rng():
    decoder, unused = nn.Linear(3, 3), nn.Linear(9, 9)


def names_a_global(x):
    return decoder(x)


def test_modules_are_found_wherever_a_program_refers_to_them():
    with torch.random.fork_rng():
        encoder = nn.Linear(2, 2)

    class Holder:
        def __init__(self):
            self.net = encoder

        def guide(self, x):
            return self.net(x)

    class Callable:
        def __init__(self):
            self.nets = {"a": [encoder]}

        def __call__(self, x):
            return x

    def closure(x):
        return encoder(x)

    vae, _ = make_vae()
    assert list(reachable_modules(vae, "m").values()) == [vae]
    assert list(reachable_modules(vae.forward, "m").values()) == [vae]
    assert list(reachable_modules(names_a_global, "m").values()) == [decoder]

    def nested(x):
        return [decoder(row) for row in x]

    assert list(reachable_modules(nested, "m").values()) == [decoder]
    assert list(reachable_modules(types.SimpleNamespace(net=encoder), "m").values()) == [encoder]
    assert list(reachable_modules(lambda x: x.decoder, "m").values()) == []  # an attribute of that name, not the global
    for program in (closure, functools.partial(closure, 1), Holder().guide, Callable(), lambda x: closure(x)):
        assert list(reachable_modules(program, "m").values()) == [encoder]
    both = Pair(closure, Holder().guide).modules
    assert list(both.values()) == [encoder]
