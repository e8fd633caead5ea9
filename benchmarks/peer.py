"""One way to train one case, timed: ``python benchmarks/peer.py CASE PEER EPOCHS`` prints seconds per epoch as JSON.

The first epoch, in which programs are compiled, is not among them.
"""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import CASES, Case, Decoder, Encoder, bits, negative_elbo
from torch import Tensor, nn

Epoch = Callable[[], None]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def shuffled(x: Tensor, size: int) -> Iterator[Tensor]:
    """Iterate over an epoch of data in memory, the way that costs least."""
    yield from (x[part] for part in torch.randperm(len(x), device=x.device).split(size))


def networks(case: Case) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    return Encoder(case).to(DEVICE), Decoder(case).to(DEVICE)


def programs(case: Case, encoder: Encoder, decoder: Decoder):
    """The pair as Pyro's VAE tutorial writes it; an inverse autoregressive flow on top where the case asks for it."""
    import pyro
    import pyro.distributions as dist
    from pyro.distributions.transforms import affine_autoregressive

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros(x.shape[0], case.latent)
            z = pyro.sample("latent", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    flows = [affine_autoregressive(case.latent, hidden_dims=[case.latent * 2]).to(DEVICE) for _ in range(2)]
    flows = nn.ModuleList(flows if case.guide == "iaf" else [])

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("flows", flows)
        with pyro.plate("data", x.shape[0]):
            q = dist.Normal(*encoder(x)).to_event(1)
            pyro.sample("latent", dist.TransformedDistribution(q, list(flows)) if flows else q)

    return model, guide


def elbo(case: Case, jit: bool = False):
    from pyro.infer import JitTrace_ELBO, RenyiELBO, Trace_ELBO

    if case.particles > 1:  # with one plate around every site, Pyro's bound is per observation
        return RenyiELBO(alpha=0, num_particles=case.particles, vectorize_particles=True, max_plate_nesting=1)
    return JitTrace_ELBO() if jit else Trace_ELBO()


def pyrovae(case: Case, x: Tensor, epochs: int, compile: bool) -> list[float]:
    """Read off the history of one fit, whose first epoch holds the compiling."""
    from pyrovae import fit

    pair = programs(case, *networks(case))
    fitted = fit(
        *pair, x, epochs=epochs + 1, batch_size=case.batch, compile=compile, objective=elbo(case), progress=False
    )
    if compile and fitted.compiled:
        raise SystemExit(fitted.compiled)
    ends = fitted.history.groupby("epoch")["seconds"].max().to_numpy()
    return (ends[1:] - ends[:-1]).tolist()


def svi(case: Case, x: Tensor, jit: bool, loader: bool) -> Epoch:
    import pyro
    from pyro.infer import SVI

    pyro.enable_validation(not jit)
    step = SVI(*programs(case, *networks(case)), pyro.optim.Adam({"lr": 1e-3}), loss=elbo(case, jit)).step
    held = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x.cpu()), batch_size=case.batch, shuffle=True)

    def epoch() -> None:
        for batch in (b.to(DEVICE) for (b,) in held) if loader else shuffled(x, case.batch):
            step(batch)

    return epoch


def hand_written(case: Case, x: Tensor, compile: bool) -> Epoch:
    encoder, decoder = networks(case)
    params = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(params, 1e-3, fused=True, capturable=CUDA)

    def loss(batch: Tensor) -> Tensor:
        return negative_elbo(encoder, decoder, batch, case.particles)

    objective = torch.compile(loss, dynamic=False) if compile else loss

    def step(batch: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = objective(batch)
        value.backward()
        optimizer.step()
        return value.detach()

    run = captured(step) if compile and CUDA else step

    def epoch() -> None:
        for batch in shuffled(x, case.batch):
            run(batch)

    return epoch


def captured(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Replay whole steps as CUDA graphs, one for each batch size."""
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def run(batch: Tensor) -> Tensor:
        if len(batch) not in graphs:
            static, stream = batch.clone(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step(static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                value = step(static)
            graphs[len(batch)] = graph, static, value
        graph, static, value = graphs[len(batch)]
        static.copy_(batch)
        graph.replay()
        return value

    return run


def products(case: Case, x: Tensor) -> Epoch:
    """The matrix products of a step, forwards and backwards, into memory that is there."""
    encoder, decoder = networks(case)
    layers = [m for n in (encoder, decoder) for m in n.modules() if isinstance(m, nn.Linear)]
    rows = {0: case.batch, 1: case.batch * case.particles}
    work = []
    for i, layer in enumerate(layers):
        n = rows[int(any(layer is m for m in decoder.modules()))]
        given, out = torch.randn(n, layer.in_features, device=DEVICE), torch.randn(n, layer.out_features, device=DEVICE)
        work.append((layer.weight.detach(), given, out, torch.empty_like(layer.weight), i > 0))

    def epoch() -> None:
        for _ in range(-(-len(x) // case.batch)):
            for weight, given, out, grad, inner in work:
                torch.mm(given, weight.T, out=out)
                torch.mm(out.T, given, out=grad)
                if inner:
                    torch.mm(out, weight, out=given)

    for weight, *_ in work:
        weight.mul_(0.01)  # so that nothing overflows in being multiplied again and again
    return epoch


def pythae_networks(case: Case) -> tuple[Any, Any]:
    """Return encoder and decoder in the classes that Pythae has for them."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    encoder, decoder = networks(case)

    class Encodes(BaseEncoder):
        def __init__(self):
            BaseEncoder.__init__(self)
            self.inner = encoder

        def forward(self, batch):
            loc, scale = self.inner(batch)
            return ModelOutput(embedding=loc, log_covariance=2 * scale.log())

    class Decodes(BaseDecoder):
        def __init__(self):
            BaseDecoder.__init__(self)
            self.inner = decoder

        def forward(self, z):
            return ModelOutput(reconstruction=torch.sigmoid(self.inner(z)))

    return Encodes(), Decodes()


def pythae(case: Case, x: Tensor, epochs: int) -> list[float]:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    config = VAEConfig(input_dim=(case.features,), latent_dim=case.latent, reconstruction_loss="bce")
    training = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), num_epochs=epochs + 1, per_device_train_batch_size=case.batch,
        learning_rate=1e-3, no_cuda=not CUDA,
    )  # fmt: skip
    data = BaseDataset(x.cpu(), torch.zeros(len(x)))
    trainer = BaseTrainer(VAE(config, *pythae_networks(case)), data, training_config=training)
    seconds, inner = [], trainer.train_step

    def timed(epoch):
        started = time.perf_counter()
        result = inner(epoch)
        seconds.append(time.perf_counter() - started)
        return result

    trainer.train_step = timed
    trainer.train()
    return seconds[1:]


PEERS = {
    "pyrovae, compiled": lambda case, x, n: pyrovae(case, x, n, True),
    "pyrovae, eager": lambda case, x, n: pyrovae(case, x, n, False),
    "Pyro, tutorial": lambda case, x, n: timed(svi(case, x, jit=False, loader=True), n),
    "Pyro, JitTrace_ELBO": lambda case, x, n: timed(svi(case, x, jit=True, loader=False), n),
    "Pythae": pythae,
    "PyTorch by hand, eager": lambda case, x, n: timed(hand_written(case, x, False), n),
    "PyTorch by hand, compiled": lambda case, x, n: timed(hand_written(case, x, True), n),
    "matrix products alone": lambda case, x, n: timed(products(case, x), n),
}


def timed(epoch: Epoch, epochs: int) -> list[float]:
    epoch()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        epoch()
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    _, name, peer, epochs = sys.argv
    data, real = bits(CASES[name])
    print("\n" + json.dumps({"seconds": PEERS[peer](CASES[name], data.to(DEVICE), int(epochs)), "real": real}))
