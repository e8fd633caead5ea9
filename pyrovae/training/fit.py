"""Stochastic variational inference for any pair."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.checks import at_least, positive, writable_folder
from pyrovae.data import Data
from pyrovae.pair import Layout, Pair, Program, log_density, sample_sites
from pyrovae.particles import Question, non_finite_site, placed_data, read
from pyrovae.state import default_device, isolated, modes, random_state
from pyrovae.training import storage
from pyrovae.training.history import History
from pyrovae.training.interrupt import Interrupts
from pyrovae.training.result import (
    BARE,
    Fit,
    carrying,
    describe,
    fitted_tensors,
    history_rows,
    pair_tensors,
    restore_pair,
)
from pyrovae.training.step import Params, PyroStepper, Stepper, TorchStepper, make_optimizer

DEFAULT_LR = 1e-3
DEFAULT_EPOCHS = 100
DTYPES = {"float32": None, "float64": torch.float64}


class FitError(RuntimeError):
    """A fit that had to stop: a loss that is not finite, or a program that fails on a batch.

    Attributes:
        fit: the fit up to its last good state, or None.
        step: at which it stopped, from 0.
        site: with the first density that is not finite, or None.
        indices: of the batch's data, those with a density that is not finite first.
    """

    def __init__(self, message: str, *, step: int, site: str | None, indices: list[int]) -> None:
        super().__init__(message)
        self.fit: Fit | None = None
        self.step, self.site, self.indices = step, site, indices


class FitInterrupted(KeyboardInterrupt):
    """A fit that SIGINT or SIGTERM stopped, after its step was ended and its checkpoint written.

    Attributes:
        fit: the fit so far.
        signum: the signal's number.
    """

    def __init__(self, message: str, fit: Fit, signum: int) -> None:
        super().__init__(message)
        self.fit, self.signum = fit, signum


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    objective: Any = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | Callable[[int], float] = DEFAULT_LR,
    optimizer: Any = None,
    validation_data: Any = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    precision: str = "float32",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a pair by stochastic variational inference; modules are trained in place.

    They stay in the mode, train or eval, that they are in; what is judged is judged in eval mode.

    Source: Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", 2013; Kingma and Welling, 2014.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        objective: any ``pyro.infer.ELBO``; None means ``Trace_ELBO()``.
        epochs: passes over the data; 100 when neither epochs nor steps are given.
        steps: gradient steps, instead of epochs.
        batch_size: data in a step; the last batch of an epoch holds what is left.
        lr: learning rate, or a function of the step (from 0) that returns it.
        optimizer: None (Adam), a class of ``torch.optim``, a function of the parameters that returns an optimizer, an
            optimizer, or a ``pyro.optim.PyroOptim``, with which Pyro's own ``SVI`` takes the steps.
        validation_data: judged after every epoch: one particle a datum, the same noise each time.
        patience: stop after this many epochs without a better validation bound, and go back to the best state.
        clip_norm: largest global norm of the gradient of the summed loss.
        precision: "float64" casts modules and data to double; "float32" leaves the modules' own dtype.
        checkpoint: folder in which to save the fit as it goes.
        checkpoint_seconds: least time between two checkpoints; one is always written at the end.
        resume: continue from the checkpoint, to the same result (bit for bit on the CPU) as without the interruption;
            starts afresh where the folder holds none.
        seed: of parameters that the programs declare, batches and noise.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        The fitted pair and its history.

    Example:
        >>> from pyrovae import guides, models, nn
        >>> model, guide = models.LinearGaussian(2, 5), guides.FullRank(nn.MLP(5, 16), 2)
        >>> fitted = fit(model, guide, torch.randn(100, 5), epochs=2, progress=False)
        >>> list(fitted.history.columns)[:5]
        ['step', 'epoch', 'seconds', 'loss', 'bound']

    Raises:
        ValueError: for bad arguments, bad data, a pair that breaks the contract or a checkpoint of another fit.
        FitError: when the loss or its gradient is not finite or a program fails on a batch; its ``fit`` holds the last
            good state.
        FitInterrupted: (a KeyboardInterrupt) on SIGINT or SIGTERM, after saving.
    """
    run = _Run(model, guide, data, validation_data, device, precision, seed)
    total = _total_steps(len(run.data), epochs, steps, at_least("batch_size", batch_size, 1))
    if patience is not None:
        at_least("patience", patience, 1)
        if validation_data is None:
            raise ValueError("patience needs validation_data, by whose bound the best state is chosen")
    if clip_norm is not None:
        positive("clip_norm", clip_norm)
    if checkpoint is not None:
        checkpoint = writable_folder(checkpoint)
    elif resume:
        raise ValueError("resume=True needs a checkpoint folder to continue from")
    settings = {"batch_size": batch_size, "seed": seed, "num_data": len(run.data)}
    with isolated(seed=seed, device=run.device, modules=[], training=False, params=run.store):
        run.prepare(objective)
        run.stepper = _stepper(run, optimizer, lr, clip_norm)
        run.schedule = lr if callable(lr) else None
        if resume and checkpoint is not None and storage.holds_fit(checkpoint):
            run.restore(checkpoint, settings)
        with pyro.validation_enabled(False), Interrupts() as interrupts:
            try:
                _loop(run, total, batch_size, patience, checkpoint, checkpoint_seconds, settings, interrupts, progress)
            except FitError as error:
                error.fit = run.result("failed")
                raise
        if interrupts.received is not None:
            fit = run.result(interrupts.received.name)
            where = f"; continue it from {str(checkpoint)!r} with resume=True" if checkpoint else ""
            raise FitInterrupted(
                f"{interrupts.received.name}: stopped after step {run.step}{where}", fit, interrupts.received
            )
        return run.result(run.stopped)


def _loop(
    run: "_Run",
    total: int,
    batch_size: int,
    patience: int | None,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    settings: dict[str, Any],
    interrupts: Interrupts,
    progress: bool,
) -> None:
    per_epoch = -(-len(run.data) // batch_size)
    started, saved = time.monotonic() - run.seconds, time.monotonic()
    order = run.order(run.step // per_epoch)
    with tqdm(total=total, initial=run.step, desc="fit", unit="step", disable=not progress, mininterval=0.5) as bar:
        while run.step < total and not run.stopped:
            epoch, position = divmod(run.step, per_epoch)
            if position == 0:
                order = run.order(epoch)
            run.take(epoch, order[position * batch_size : (position + 1) * batch_size], started)
            if run.step % per_epoch == 0 or run.step == total:
                run.end_epoch(patience)
            run.seconds = time.monotonic() - started
            bar.update()
            if progress and bar.n == bar.last_print_n:  # only when the bar was drawn, so that no step waits
                bar.set_postfix(bound=f"{run.history.last('bound'):.2f}", refresh=False)
            interrupted = interrupts.received is not None
            if checkpoint is not None and (interrupted or time.monotonic() - saved >= checkpoint_seconds):
                run.save(checkpoint, settings, interrupts.received.name if interrupts.received else "running")
                saved = time.monotonic()
            if interrupted:
                return
    run.finish(patience)
    if checkpoint is not None:
        run.save(checkpoint, settings, run.stopped or "finished")


class _Run:
    """A fit under way: everything that a checkpoint holds."""

    stepper: Stepper
    layout: Layout
    schedule: Callable[[int], float] | None

    def __init__(
        self, model: Program, guide: Program, data: Any, validation_data: Any, device: Any, precision: str, seed: int
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        self.pair = Pair(model, guide)
        self.device = default_device(device)
        for module in self.pair.modules.values():
            module.to(self.device, DTYPES[precision])
        self.data = placed_data(self.pair, data, self.device)
        self.validation = None
        if validation_data is not None:
            self.validation = placed_data(self.pair, validation_data, self.device).fixed()
        self.seed = seed
        self.store: dict[str, Any] = {"params": {}, "constraints": {}}
        self.history, self.step, self.seconds, self.stopped = History(), 0, 0.0, ""
        self.best_bound, self.best_epoch, self.epoch = -math.inf, 0, 0
        self.best: dict[str, Tensor] = {}
        self.good: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def prepare(self, objective: Any) -> None:
        """Read the pair and the data, and find the parameters."""
        with modes(self.pair.modules.values(), training=False), torch.no_grad():
            self.layout = read(self.pair, self.data)
            if self.validation is not None:
                read(self.pair, self.validation)
        skipped = [name for name in self.layout.unguided if not _enumerated(self.pair, self.data, name)]
        if skipped:
            raise ValueError(
                f"latent site {skipped[0]!r} of the model is not sampled by the guide: sample it in the guide, or mark "
                'it infer={"enumerate": "parallel"} and use TraceEnum_ELBO'
            )
        self.objective = copy.deepcopy(Trace_ELBO() if objective is None else objective)
        if not callable(getattr(self.objective, "loss_and_grads", None)):
            raise ValueError(f"objective must be a pyro.infer.ELBO, such as Trace_ELBO(), got {objective!r}")
        self.params, self.bare = find_params(self.pair, self.data)
        if not self.params:
            raise ValueError(
                "the pair has no trainable parameter: pass modules, or register them with pyro.module or pyro.param"
            )
        torch.manual_seed(self.seed)
        self.good = self.snapshot()

    def order(self, epoch: int) -> Tensor:
        """Return the data's order in an epoch, a function of the seed and the epoch alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(len(self.data), generator=generator).to(self.device)

    def take(self, epoch: int, indices: Tensor, started: float) -> None:
        """Take a step on the data at ``indices``."""
        if self.schedule is not None:
            self.stepper.set_lr(float(self.schedule(self.step)))
        lr = self.stepper.lr
        batch = self.data.batch(indices)
        if self.step == 0:
            self._check_first(batch)
        try:
            outcome = self.stepper.step(batch)
        except (RuntimeError, ValueError) as error:
            self._fail(f"{type(error).__name__}: {error}", None, indices.tolist(), batch, error)
        if not bool(outcome.loss.isfinite()):
            site, bad = self._culprit(len(indices))
            data = ", ".join(str(int(i)) for i in indices[bad][:5])
            more = ", ..." if len(bad) > 5 else ""
            text = f"the loss is {float(outcome.loss):g}, first at site {site!r}, for data [{data}{more}]"
            rest = [i for i in range(len(indices)) if i not in set(bad)]
            self._fail(text, site, indices[bad + rest].tolist(), batch, None)
        if not isinstance(self.stepper, PyroStepper) and not bool(outcome.grad_norm.isfinite()):
            self._fail(f"the gradient's norm is {float(outcome.grad_norm):g}", None, indices.tolist(), batch, None)
        self.history.append(self.step, epoch, time.monotonic() - started, outcome, lr)
        self.step += 1

    def _check_first(self, batch: tuple[Tensor, ...]) -> None:
        """Run the objective once, validated, so that a mistake gets Pyro's own message; no noise is used up."""
        eval_mode = modes(self.pair.modules.values(), training=False)
        with eval_mode, random_state(self.seed, self.device), pyro.validation_enabled(True), torch.no_grad():
            self.objective.loss(self.stepper.recorder.model, self.stepper.recorder.guide, *batch)

    def _culprit(self, num_data: int) -> tuple[str, list[int]]:
        recorder = self.stepper.recorder
        if not recorder.model_traces or not recorder.guide_traces:
            return "unknown", []
        model_trace, guide_trace = recorder.model_traces[-1], recorder.guide_traces[-1]
        with torch.no_grad():
            site = non_finite_site(model_trace, guide_trace, num_data)
            total = log_density(model_trace, num_data) - log_density(guide_trace, num_data)
        return site, (~total.isfinite()).nonzero().flatten().tolist()

    def _fail(self, text: str, site: str | None, indices: list[int], batch: Any, cause: Exception | None) -> None:
        if not self._still_good(batch):
            self.back_to(self.good)
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        raise FitError(
            f"the fit stopped at step {self.step}, batch of data [{shown}]: {text}; the last good state is kept",
            step=self.step,
            site=site,
            indices=indices,
        ) from cause

    def _still_good(self, batch: Any) -> bool:
        """Whether the parameters give a finite loss on some other data, so that this batch alone is to blame."""
        others = self.data.batch(self.order(0)[: len(batch[0])])
        recorder = self.stepper.recorder
        try:
            with torch.no_grad():
                return math.isfinite(float(self.objective.loss(recorder.model, recorder.guide, *others)))
        except (RuntimeError, ValueError):
            return False

    def end_epoch(self, patience: int | None) -> None:
        """Keep the state, judge it on the validation data, and decide whether to stop."""
        self.epoch += 1
        self.stepper.end_epoch()
        self.good = self.snapshot()
        if self.validation is None:
            return
        bound = self._validation_bound()
        self.history.validated(bound)
        if bound > self.best_bound:
            self.best_bound, self.best_epoch = bound, self.epoch
            self.best = self.good if patience is not None else {}
        elif patience is not None and self.epoch - self.best_epoch >= patience:
            self.stopped = "patience"

    def finish(self, patience: int | None) -> None:
        """Go back to the best state when there is one; the last is kept for a fit that goes on from here."""
        if patience is not None and self.best and self.best_epoch < self.epoch:
            self.last = self.snapshot()
            self.back_to(self.best)

    @torch.no_grad()
    def _validation_bound(self) -> float:
        """Return the mean bound of the validation data, nats per datum; the same noise at every call."""
        assert self.validation is not None
        with modes(self.pair.modules.values(), training=False), random_state(self.seed, self.device):
            if not self.layout.global_latents and not self.layout.unguided:
                asked = Question(self.pair, self.validation, self.layout, self.seed)
                return float(torch.cat([part[0] for _, part in asked.log_weights(1, 256)]).double().mean())
            recorder, total = self.stepper.recorder, 0.0
            for indices, batch in self.validation.batches(256):
                loss = float(self.objective.loss(recorder.model, recorder.guide, *batch))
                total -= loss / recorder.loss_size(self.layout) * len(indices)
                recorder.clear()
            return total / len(self.validation)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy every tensor of the pair."""
        return {key: t.detach().clone() for key, t in pair_tensors(self.pair, self.bare).items()}

    @torch.no_grad()
    def back_to(self, tensors: dict[str, Tensor]) -> None:
        """Put a copy of the pair's tensors back."""
        for key, t in pair_tensors(self.pair, self.bare).items():
            t.copy_(tensors[key])

    def result(self, stopped: str) -> Fit:
        """Return the fit as it stands."""
        for p in self.params.values():
            p.grad = None
        store = pyro.get_param_store().get_state()
        programs = carrying(self.pair.model, self.pair.guide, dict(store), {})
        return Fit(*programs, self.history.frame(), stopped or "finished", self.seconds, dict(self.bare))

    def save(self, folder: Path, settings: dict[str, Any], stopped: str) -> None:
        """Write a checkpoint: a saved fit, and what is needed to go on."""
        so_far = Fit(self.pair.model, self.pair.guide, self.history.frame(), stopped, self.seconds, self.bare)
        tensors, document = describe(so_far, self.history)
        document["resume"] = {
            "settings": settings,
            "optimizer": storage.flatten(self.stepper.state(), "optimizer", tensors),
            "progress": [
                self.step,
                self.epoch,
                self.best_epoch,
                self.best_bound if self.best_epoch else None,
                self.stopped,
            ],
        }
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random-cuda"] = torch.cuda.get_rng_state(self.device)
        for prefix, state in (("best", self.best), ("last", self.last)):
            tensors.update({f"{prefix}/{key}": value for key, value in state.items()})
        storage.write(folder, tensors, document)

    def restore(self, folder: Path, settings: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: when it is unreadable, or of another pair or other settings.
        """
        tensors, document = storage.read(folder)
        resume = document.get("resume")
        if resume is None:
            raise ValueError(
                f"{str(folder)!r} holds a saved fit that cannot be resumed: name another checkpoint folder"
            )
        for key, value in settings.items():
            if resume["settings"].get(key) != value:
                raise ValueError(
                    f"the checkpoint in {str(folder)!r} was made with {key}={resume['settings'].get(key)}, got "
                    f"{key}={value}: use the same, or resume=False"
                )
        self.last = {key.removeprefix("last/"): t for key, t in tensors.items() if key.startswith("last/")}
        restore_pair(self.pair, self.bare, self.last or fitted_tensors(tensors), repr(str(folder)))
        self.stepper.restore(storage.unflatten(resume["optimizer"], tensors, self.device))
        self.step, self.epoch, self.best_epoch, best, self.stopped = resume["progress"]
        self.best_bound = -math.inf if best is None else best
        self.best = {key.removeprefix("best/"): t for key, t in tensors.items() if key.startswith("best/")}
        self.history = History.from_array(history_rows(tensors))
        self.seconds, self.good = document["seconds"], self.snapshot()
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "random-cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random-cuda"], self.device)


def _total_steps(num_data: int, epochs: int | None, steps: int | None, batch_size: int) -> int:
    if epochs is not None and steps is not None:
        raise ValueError("give epochs or steps, not both")
    if steps is not None:
        return at_least("steps", steps, 1)
    return at_least("epochs", DEFAULT_EPOCHS if epochs is None else epochs, 1) * -(-num_data // batch_size)


def _stepper(run: _Run, optimizer: Any, lr: Any, clip_norm: float | None) -> Stepper:
    if not callable(lr):
        positive("lr", lr)
    own_lr = isinstance(optimizer, torch.optim.Optimizer | pyro.optim.PyroOptim) or (
        optimizer is not None and not isinstance(optimizer, type)
    )
    if own_lr and not callable(lr) and lr != DEFAULT_LR:
        raise ValueError(f"lr={lr} would be ignored, since the optimizer that was passed has its own: set it there")
    if isinstance(optimizer, pyro.optim.PyroOptim):
        if callable(lr) or clip_norm is not None:
            raise ValueError("a Pyro optimizer has its own learning rates and clipping: set them there, not in fit")
        return PyroStepper(run.pair, run.layout, run.objective, optimizer)
    start = float(lr(0)) if callable(lr) else lr
    made = make_optimizer(optimizer, run.params, start)
    return TorchStepper(run.pair, run.layout, run.objective, run.params, made, clip_norm)


def find_params(pair: Pair, data: Data) -> tuple[Params, dict[str, Tensor]]:
    """Return the pair's trainable parameters by name, and those among them that belong to no module.

    They are the parameters of the modules that were passed as model or guide, and all that the programs register with
    ``pyro.module`` or declare with ``pyro.param``.
    """
    model_trace, guide_trace = pair.traces(data.batch(slice(0, 2)))
    owned = {id(p): f"{name}/{key}" for name, module in pair.modules.items() for key, p in module.named_parameters()}
    params: Params = {}
    bare: dict[str, Tensor] = {}
    for program in (pair.model, pair.guide):
        if isinstance(program, nn.Module):
            params.update({owned[id(p)]: p for p in program.parameters() if p.requires_grad})
    for trace in (model_trace, guide_trace):
        for name, site in trace.nodes.items():
            if site["type"] != "param":
                continue
            leaf = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
            if id(leaf) not in owned:
                if bare.setdefault(name, leaf) is not leaf:
                    raise ValueError(f"two parameters are named {name!r}: rename one of them")
                params[f"{BARE}/{name}"] = leaf
            elif leaf.requires_grad:
                params[owned[id(leaf)]] = leaf
    return params, bare


def _enumerated(pair: Pair, data: Data, name: str) -> bool:
    model_trace, _ = pair.traces(data.batch(slice(0, 2)))
    return bool(dict(sample_sites(model_trace))[name]["infer"].get("enumerate"))
