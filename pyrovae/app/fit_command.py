"""``pyrovae fit``, and the fits of ``pyrovae compare``."""

from collections.abc import Callable
from typing import Any, Literal

from pyrovae.app.folders import clear
from pyrovae.app.models import VAE, ModelMaker, ModelOption, make_pair
from pyrovae.app.parts import GuideMaker, ObjectiveMaker, Parts, SchedulerMaker, made, made_by_options
from pyrovae.app.splits import ONE_SPLIT, Split
from pyrovae.common.checks import at_least
from pyrovae.data import Data, Splits
from pyrovae.guides import MeanField
from pyrovae.importance.question import ask
from pyrovae.likelihoods import Likelihood
from pyrovae.nn import MLP, Network, Shape
from pyrovae.priors import Prior, StandardNormal
from pyrovae.saving import RunFolder
from pyrovae.training import Fit, fit
from pyrovae.training.group import Group

MOST_STEPS = 5000  # of a fit whose number of epochs is not given
LEAST_STEPS = 500  # without a better validation bound, before patience ends a fit to few data


def fit_command(
    data: Data,
    out: str,
    model: ModelOption = VAE,
    guide: GuideMaker = MeanField,
    objective: ObjectiveMaker | None = None,
    prior: Callable[[int], Prior] = StandardNormal,
    likelihood: Callable[[], Likelihood] | None = None,
    encoder: Callable[[Shape, Shape], Network] = MLP,
    decoder: Callable[[Shape, Shape], Network] = MLP,
    latent_dim: int = 8,
    features: int = 128,
    embedding: int | None = None,
    epochs: int | None = None,
    patience: int | None = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    clip_norm: float | None = None,
    scheduler: SchedulerMaker | None = None,
    scheduler_every: Literal["epoch", "step"] = "epoch",
    drop_last: bool = False,
    compile: bool | Literal["auto"] = "auto",
    precision: Literal["float32", "float64", "bfloat16"] = "float32",
    split: Split = ONE_SPLIT,
    seed: int = 0,
    device: str | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit a model by SVI and save it.

    The data are split at random: 7 in 10 for training, 1 for validation, 2 for testing (the published test set where
    there is one), unless --split says otherwise. Where values are missing (--data.missing true), likelihood and encoder
    take that into account. Under torchrun the processes share every batch.

    Args:
        data: the data set: the path of a table (CSV, Parquet, Excel), or Table with its options, Array (a .npy file),
            Folder (of pictures), Documents (a text file), Digits, MNIST, FashionMNIST, Sprites, DSprites or CSV.
        out: folder for the fit, its history and its configuration.
        model: the generative model: VAE, ConditionalVAE, SemiSupervisedVAE, GaussianMixtureVAE, HierarchicalVAE,
            BayesianVAE or LinearGaussian.
        guide: family of q(z | x).
        objective: what the fit maximises, such as Trace_ELBO, IWAE or BetaELBO; null takes the model's own, which is
            Trace_ELBO for most.
        prior: distribution of the latents.
        likelihood: distribution of an observation given the decoder's features; null takes what a table's columns call
            for, and Bernoulli for other data.
        encoder: network from an observation to features.
        decoder: network from latents to the likelihood's features.
        latent_dim: number of latents.
        features: number of features that the encoder returns.
        embedding: length of the vectors, which are learned, that the encoder is given for categories of a table's
            column with more of them; null shows all categories one-hot.
        epochs: largest number of passes over the training set; null takes as many as 5,000 steps need, 50 at least.
        patience: stop after this many epochs, and 500 steps at least, without a better validation bound; null never
            stops early.
        batch_size: number of observations in a step.
        lr: learning rate of Adam.
        clip_norm: largest global norm of the gradient of the summed loss.
        scheduler: schedule of the learning rate, such as ReduceLROnPlateau, CosineAnnealingLR or StepLR; null keeps it.
        scheduler_every: when the scheduler steps.
        drop_last: whether the last batch of an epoch is left out where it is smaller than the others.
        compile: true compiles the step, false does not, auto does where it saves time; config.yaml records the choice.
        precision: precision of modules and data; bfloat16 applies to the matrix products in networks only.
        split: how the data are split.
        seed: seed of the split, the initial parameters and the noise.
        device: cpu, cuda, ...; null means CUDA where there is one.
        checkpoint_seconds: least time between two checkpoints of a fit; one is always written at its end.
        resume: continue an earlier run in the same folder.
        progress: show progress bars.
    """
    folder, maker = RunFolder(out), made_model(model)
    if split.num_folds:
        raise ValueError("a cross-validation is made by compare, not by fit: leave split.num_folds out")
    fitted = fit_guide(
        folder, "fit", maker.split(split.of(data, seed)[0]), guide,
        model=maker, objective=made(objective or maker.objective), prior=prior, likelihood=likelihood,
        encoder=encoder, decoder=decoder,
        latent_dim=latent_dim, features=features, embedding=embedding,
        epochs=epochs, patience=patience, batch_size=batch_size, lr=lr, clip_norm=clip_norm, compile=compile,
        scheduler=scheduler, scheduler_every=scheduler_every, drop_last=drop_last,
        precision=precision, seed=seed, device=device, checkpoint_seconds=checkpoint_seconds, resume=resume,
        progress=progress,
    )  # fmt: skip
    if Group().rank == 0:
        folder.write_table("history.csv", fitted.history, index=False)
        print(f"best validation bound {fitted.history['validation_bound'].max():.3f} nats per observation")
        print(f"saved in {folder.path}\nto evaluate it on the test data: pyrovae evaluate {folder.path}")
    return {"compile": fitted.compile}


def made_model(model: ModelOption) -> ModelMaker:
    """Make what makes the model."""
    with made_by_options():
        return model()


def fit_guide(run: RunFolder, name: str, splits: Splits, guide: GuideMaker, **options: Any) -> Fit:
    """Fit one strategy into its folder of a run, or continue it."""
    names = ("latent_dim", "prior", "likelihood", "encoder", "decoder", "features", "embedding")
    parts, maker = {name: options.pop(name) for name in names}, options.pop("model")
    model, q = make_pair(maker, Parts(splits.train, guide=guide, **parts), options["seed"])
    per_epoch = -(-len(splits.train) // max(options["batch_size"], 1))
    if options["epochs"] is None:
        options["epochs"] = max(50, -(-MOST_STEPS // per_epoch))
    if options["patience"] is not None:
        options["patience"] = max(at_least("patience", options["patience"], 1), -(-LEAST_STEPS // per_epoch))
    validation = splits.validation
    if run.record.get("instead") and not Group().rank:
        with ask(model, q, splits.train, seed=options["seed"], device=options["device"], takes_weights=True):
            clear(run)
    folder = run.path / name if Group().rank else run.add_fit(name)
    fitted = fit(model, q, splits.train, validation_data=validation, checkpoint=folder, **options)
    if Group().rank == 0:
        print(f"{name}: {fitted.ending} ({len(fitted.history)} steps, {fitted.seconds:.1f} s)")
    return fitted
