"""Stochastic variational inference for any pair."""

import json
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch

from pyrovae.common.checks import at_least, check_schedule, not_negative, positive, writable_folder
from pyrovae.common.progress import progress_bar
from pyrovae.data import as_data
from pyrovae.objectives import Objective
from pyrovae.programs.compilation import check_mode
from pyrovae.programs.isolation import default_dtype, isolated
from pyrovae.programs.streams import check_seed
from pyrovae.programs.types import Program
from pyrovae.saving import lock
from pyrovae.training import storage
from pyrovae.training.compiling import Compiler
from pyrovae.training.described import described, of_an_optimizer
from pyrovae.training.errors import FitError, FitInterrupted
from pyrovae.training.group import Group, LostProcess
from pyrovae.training.interrupt import Interrupts
from pyrovae.training.jitted import said_of
from pyrovae.training.optimizers import check_optimizer, make_optimizer
from pyrovae.training.result import Fit
from pyrovae.training.run import Run
from pyrovae.training.step import Gradients, PyroStepper, Stepper, TorchStepper

DEFAULT_LR = 1e-3
DEFAULT_EPOCHS = 100


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
    compile: bool | str = "auto",
    precision: str = "float32",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a pair by stochastic variational inference; modules are trained in place.

    They stay in the mode, train or eval, that they are in; what is evaluated is evaluated in eval mode.

    In an initialised default group of ``torch.distributed`` every process calls this with the same arguments; each
    takes its share of every batch, and the gradients are added up. A datum's noise is the one that it would have in one
    process, whose result comes out up to rounding; what is drawn from a distribution that is computed (a gamma, a
    Poisson) comes from a stream of the process's own, and what compares the data of a batch (its
    statistics, regularisers of the aggregate posterior) sees those of a share. The first process
    writes the checkpoint, which any number of processes can resume.

    Source: Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", 2013; Kingma and Welling, 2014.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        objective: any ``pyro.infer.ELBO``; None means ``Trace_ELBO()``. A jitted one (``JitTrace_ELBO``) runs as what
            it jits, with the same settings: a fit compiles its steps itself.
        epochs: passes over the data; 100 when neither epochs nor steps are given.
        steps: gradient steps, instead of epochs.
        batch_size: data in a step; the last batch of an epoch holds what is left.
        lr: learning rate, or a function of the step (from 0) that returns it.
        optimizer: None (Adam), a class of ``torch.optim``, a function of the parameters that returns an optimizer, an
            optimizer, or a ``pyro.optim.PyroOptim``, with which Pyro's own ``SVI`` takes the steps; its schedulers step
            after every epoch, ``ReduceLROnPlateau`` by minus the validation bound, or by the mean of the epoch's losses
            where there are no validation data.
        validation_data: evaluated after every epoch: one particle a datum, the same noise each time.
        patience: stop after this many epochs without a better validation bound, and go back to the best state.
        clip_norm: largest global norm of the gradient of the summed loss.
        compile: whether a step is traced once per batch size and compiled; "auto" does so where it saves more time than
            it costs, going by the work of a step, which is counted, and the number of steps
            (:class:`pyrovae.programs.compilation.Work`). Both ways draw the same random numbers and differ by rounding,
            which grows as a fit goes on; a checkpoint keeps what was chosen. What cannot be compiled runs eagerly:
            :attr:`Fit.compile` says what was done, and :attr:`Fit.compiled` why.
        precision: "float64" casts modules and data to double; "float32" leaves the modules' own dtype; "bfloat16" does
            too, and multiplies matrices in the layers of networks in bfloat16, everything else in the modules' dtype:
            parameters, densities, and what is evaluated on validation data.
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
        FitInterrupted: (a KeyboardInterrupt) on SIGINT, SIGTERM or SIGHUP, after saving.
    """
    group = Group()
    with ExitStack() as stack:
        with group.together() as told:
            data = as_data(data)
            total = _total_steps(len(data), epochs, steps, at_least("batch_size", batch_size, 1))
            if patience is not None:
                patience = at_least("patience", patience, 1)
                if validation_data is None:
                    raise ValueError("patience needs validation_data, by whose bound the best state is chosen")
            if clip_norm is not None:
                clip_norm = positive("clip_norm", clip_norm)
            checkpoint_seconds = not_negative("checkpoint_seconds", checkpoint_seconds)
            if checkpoint is not None:
                checkpoint = writable_folder(checkpoint)
            elif resume:
                raise ValueError("resume=True needs a checkpoint folder to continue from")
            check_mode(compile)
            check_optimizer(optimizer)
            check_schedule(lr)
            check_seed(seed)
            if isinstance(objective, type):
                raise ValueError(f"objective must be an instance, such as {objective.__name__}(), got the class itself")
            if objective is not None and not callable(getattr(objective, "loss_and_grads", None)):
                raise ValueError(f"objective must be a pyro.infer.ELBO, such as Trace_ELBO(), got {objective!r}")
            if checkpoint is not None and not group.rank:
                stack.enter_context(lock(checkpoint))
            batch_size = int(batch_size)  # which may be NumPy's
            run = Run(
                model, guide, data, validation_data, device=device, precision=precision, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip
            stack.enter_context(
                isolated(purpose="fit", seed=seed, device=run.device, modules=[], training=False, params=run.store)
            )
            if run.dtype is not None:
                stack.enter_context(default_dtype(run.dtype))  # of the parameters that functions declare
            run.prepare(objective)
            for sentence in run.objective.unfinished(total) if isinstance(run.objective, Objective) else ():
                warnings.warn(sentence, stacklevel=2)
            run.compiler = Compiler(compile, run.pair, partial(_left, run, total), progress, run.bfloat16)
            run.compiler.lines += said_of(objective)
            run.stepper = _stepper(run, optimizer, lr, clip_norm)
            run.schedule = lr if callable(lr) else None
            settings = {}
            if checkpoint is not None or group.size > 1:
                settings = _settings(run, lr=lr, optimizer=optimizer, clip_norm=clip_norm, precision=precision)
            told.update(settings, steps=total, patience=patience, compile=compile, checkpoint=checkpoint is not None)
            if resume and checkpoint is not None and storage.holds_fit(checkpoint):
                run.restore(checkpoint, settings)
                if patience is None or run.epoch - run.best_epoch < patience:
                    run.stopped = ""
        run.start_together()
        with pyro.validation_enabled(False), Interrupts() as interrupts:
            try:
                _loop(run, total, patience, checkpoint, checkpoint_seconds, settings, interrupts, progress)
            except FitError as error:
                run.group.fail(str(error))
                error.fit = run.result("failed")
                if checkpoint is not None and run.group.size == 1:
                    with suppress(ValueError):  # where it cannot be written, what was written before stays
                        run.save(checkpoint, settings, "failed")
                raise
            except LostProcess as error:
                kept = f"; the checkpoint in {str(checkpoint)!r} is whole" if checkpoint else ""
                lost = FitError(
                    f"the fit stopped at step {run.step}: {error}{kept}", step=run.step, site=None, indices=[]
                )
                lost.fit = run.result("failed")
                raise lost from error
        if interrupts.received is not None:
            fit = run.result(interrupts.received.name)
            where = f"; continue it from {str(checkpoint)!r} with resume=True" if checkpoint else ""
            raise FitInterrupted(
                f"{interrupts.received.name}: stopped after step {run.step}{where}", fit, interrupts.received
            )
        return run.result(run.stopped)


def _loop(
    run: Run,
    total: int,
    patience: int | None,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    settings: dict[str, Any],
    interrupts: Interrupts,
    progress: bool,
) -> None:
    started, saved = time.monotonic() - run.seconds, time.monotonic()
    with progress_bar(total=total, label="fit" if progress else None, unit="step", done=run.step) as bar:
        for epoch, indices, batch in run.batches(total):
            run.take(epoch, indices, batch, started)
            if run.step % run.per_epoch == 0:
                run.end_epoch(patience)
            run.seconds = time.monotonic() - started
            bar.update()
            if progress and bar.n == bar.last_print_n:  # only when the bar was drawn, so that no step waits
                bar.set_postfix(bound=f"{run.history.last('bound'):.2f}", refresh=False)
            interrupted = interrupts.received is not None
            due = interrupted or time.monotonic() - saved >= checkpoint_seconds
            if run.group.size > 1:
                run.group.tell(due, interrupted)
                due, interrupted = run.group.agreed
            if checkpoint is not None and (due or interrupted):
                _save(run, checkpoint, settings, interrupts.received.name if interrupts.received else "running")
                saved = time.monotonic()
            if interrupted:
                interrupts.received = interrupts.received or signal.SIGTERM  # another process was told
                return
            if run.stopped:
                break
    if run.step % run.per_epoch:
        run.validate()
    if not run.stopped and (sentence := run.history.diverged(run.per_epoch)):
        run.stopped = "diverged"
        warnings.warn(sentence, stacklevel=3)
    run.finish(patience)
    if checkpoint is not None:
        _save(run, checkpoint, settings, run.stopped or "finished")


def _save(run: Run, checkpoint: Path, settings: dict[str, Any], stopped: str) -> None:
    try:
        run.save(checkpoint, settings, stopped)
    except ValueError as error:
        text = f"the fit stopped at step {run.step}: {error}"
        raise FitError(text, step=run.step, site=None, indices=[]) from error


def _total_steps(num_data: int, epochs: int | None, steps: int | None, batch_size: int) -> int:
    if epochs is not None and steps is not None:
        raise ValueError("give epochs or steps, not both")
    if steps is not None:
        return at_least("steps", steps, 1)
    return at_least("epochs", DEFAULT_EPOCHS if epochs is None else epochs, 1) * -(-num_data // batch_size)


def _settings(run: Run, *, lr: Any, optimizer: Any, clip_norm: float | None, precision: str) -> dict[str, Any]:
    """Describe what a fit that is resumed must have been, and what all processes of a group must be asked for."""
    used = run.stepper.optimizer
    found = {
        "seed": run.seed,
        "batch_size": run.batch_size,
        **run.programs,
        "objective": described(run.objective),
        "data": run.data.fingerprint(),
        "validation_data": None if run.validation is None else run.validation.fingerprint(),
        "lr": described(lr),
        "clip_norm": clip_norm,
        "precision": precision,
        "optimizer": {"name": _named(optimizer, "Adam"), **of_an_optimizer(used, scheduled=callable(lr))},
    }
    return dict(json.loads(json.dumps(found)))  # as it is read back


def _left(run: Run, total: int) -> tuple[int, int]:
    """Return the number of steps left, and of the sizes of their batches: the last of every epoch may be smaller."""
    ragged = len(run.data) % run.batch_size and run.per_epoch > 1
    return total - run.step, 2 if ragged else 1


def _named(value: Any, default: str) -> str:
    if value is None:
        return default
    wrapped = [getattr(value, f"pt_{part}_constructor", None) for part in ("scheduler", "optim")]  # by one of Pyro's
    parts = [value, *(part for part in wrapped if part is not None)]
    return " of ".join(str(getattr(part, "__qualname__", type(part).__qualname__)) for part in parts)


def _stepper(run: Run, optimizer: Any, lr: Any, clip_norm: float | None) -> Stepper:
    if not callable(lr):
        lr = positive("lr", lr)
    own_lr = isinstance(optimizer, torch.optim.Optimizer | pyro.optim.PyroOptim) or (
        optimizer is not None and not isinstance(optimizer, type)
    )
    if own_lr and not callable(lr) and lr != DEFAULT_LR:
        raise ValueError(f"lr={lr} would be ignored, since the optimizer that was passed has its own: set it there")
    if isinstance(optimizer, pyro.optim.PyroOptim):
        if callable(lr) or clip_norm is not None:
            raise ValueError("a Pyro optimizer has its own learning rates and clipping: set them there, not in fit")
        if run.bfloat16:
            raise ValueError(
                "Pyro's optimizers take their steps in pyro.infer.SVI, which knows no bfloat16: use torch's"
            )
        if run.group.size > 1:
            raise ValueError("Pyro's optimizers cannot add up the gradients of several processes: use torch's")
        run.compiler.decline("Pyro's optimizers take their steps in pyro.infer.SVI")
        return PyroStepper(run.pair, run.layout, run.objective, optimizer)
    start = float(lr(0)) if callable(lr) else lr
    made = make_optimizer(optimizer, run.params, start)
    gradients = Gradients(run.pair, run.layout, run.objective, run.params, run.state, run.bfloat16)
    return TorchStepper(gradients, run.compiler, made, clip_norm, run.group, run.layout.subsampled)
