"""The insides of Pyro, torch and Inductor that are used are where they were: which release has moved them, if not."""

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyrovae.internals import inductor
from pyrovae.internals import pyro as inside_pyro
from pyrovae.internals import torch as inside_torch

PYRO, TORCH = f"Pyro {pyro.__version__}", f"torch {torch.__version__}"


def handlers():
    with poutine.scale(scale=2.0) as outer, poutine.block() as inner:
        assert inside_pyro.handlers_around(type(outer)) == [outer]
        assert inside_pyro.handlers_around(type(inner)) == [inner]
        assert inside_pyro.handlers_around(poutine.replay_messenger.ReplayMessenger) == []


def leaves():
    with pyro.get_param_store().scope():
        value = pyro.param("a", torch.ones(3), constraint=torch.distributions.constraints.positive)
        leaf = inside_pyro.leaf_of(value)
        assert leaf.is_leaf
        assert leaf.equal(torch.zeros(3))
        rows = value[:2]
        inside_pyro.mark_leaf(rows, value)
        assert inside_pyro.leaf_of(rows) is leaf
        assert set(inside_pyro.constraints_of(pyro.get_param_store())) == {"a"}
        with pyro.plate("data", 3, subsample_size=2):
            taken = pyro.param("a", event_dim=0)
        assert inside_pyro.leaf_of(taken) is leaf


def masks():
    normal = pyro.distributions.Normal(torch.zeros(3), 1.0)
    assert inside_pyro.mask_of(normal) is None
    assert inside_pyro.mask_of(normal.mask(torch.tensor([True, False, True]))).tolist() == [True, False, True]


def looks():
    before = pyro.util.torch_isnan, pyro.util.torch_isinf
    with inside_pyro.without_looks_for_nan():
        assert not pyro.util.torch_isnan(torch.tensor(torch.nan))
        assert not pyro.util.torch_isinf(torch.tensor(torch.inf))
    assert (pyro.util.torch_isnan, pyro.util.torch_isinf) == before
    assert pyro.infer.util.__name__ == inside_pyro.LOOKING


def validation():
    normal = torch.distributions.Normal
    assert inside_torch.is_validated(normal(0.0, 1.0, validate_args=True))
    assert not inside_torch.is_validated(normal(0.0, 1.0, validate_args=False))
    assert normal.__mro__[-2].__module__ == inside_torch.LOOKING


def dispatch():
    class Seen(inside_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names = []
    with Seen():
        torch.ones(2).reshape(1, 2)
    assert names[-1] == "aten.view.default"
    assert torch.ops.aten.view.default.is_view
    assert torch.Tag.nondeterministic_seeded in torch.ops.aten.normal_.default.tags


def trees_and_layers():
    assert inside_torch.tree_leaves({"a": [1, (2, 3)]}) == [1, 2, 3]
    assert inside_torch.tree_map(lambda one: one + 1, [1, {"a": 2}]) == [2, {"a": 3}]
    assert isinstance(nn.Conv2d(1, 1, 1), inside_torch.CONVOLUTION)
    assert torch.Tensor.all in inside_torch.ALL


def draws():
    concentration = torch.full((4,), 2.0, requires_grad=True)
    with torch.random.fork_rng():
        drawn = inside_torch.standard_gamma(concentration)
    assert torch.autograd.grad(drawn.sum(), concentration)[0].shape == (4,)


def compiling():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return [torch.bernoulli(x.sigmoid())]

    x = torch.linspace(-1, 1, 8)
    with torch.random.fork_rng(), inductor.unchanged():
        run = inductor.compile_graph(make_fx(function)(x), [x])
        torch.manual_seed(0)
        found = run(x)[0]
        torch.manual_seed(0)
        assert found.equal(function(x)[0])


CASES = {
    "handlers": PYRO, "leaves": PYRO, "masks": PYRO, "looks": PYRO, "validation": TORCH, "dispatch": TORCH,
    "trees_and_layers": TORCH, "draws": TORCH, "compiling": TORCH,
}  # fmt: skip


@pytest.mark.own_state
@pytest.mark.parametrize("name", CASES)
def test_insides_are_where_they_were(name):
    try:
        globals()[name]()
    except Exception as error:
        pytest.fail(
            f"{CASES[name]} has moved what pyrovae/internals takes for {name!r}: {type(error).__name__}: {error}"
        )
