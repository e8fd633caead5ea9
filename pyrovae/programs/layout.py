"""What a pair samples and observes, read off its traces."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch.distributions.constraints import Constraint

from pyrovae.programs.origins import Reading


@dataclass(frozen=True)
class Observed:
    """An observed site.

    Attributes:
        name: of the site.
        support: of its distribution; None where that is not known or not checked.
        reading: how the site reads the batch; None where what it observes is not made of cells of the batch.
        reason: why there is no reading, in a few words.
        function_of: position in the batch of the tensor that what it observes was computed from; None if from none.
    """

    name: str
    support: Constraint | None
    reading: Reading | None
    reason: str = ""
    function_of: int | None = None

    @property
    def source(self) -> int | None:
        """Position in the batch of the tensor that the site observes, whole or in part."""
        return None if self.reading is None else self.reading.source

    def required_reading(self) -> Reading:
        """Return how the site reads the batch.

        Raises:
            ValueError: where it does not read the batch, so that no data can take the place of what it observes.
        """
        if self.reading is None:
            raise ValueError(
                f"what is observed at site {self.name!r} {self.reason}, so that no data can take its place: give "
                "obs= a tensor of the batch, or cells of one (x, x[:, t], x.reshape(...))"
            )
        return self.reading


@dataclass(frozen=True)
class Layout:
    """What a pair samples and observes.

    Attributes:
        latents: local latent sites, sampled by both programs inside the data plate, in the model's order.
        auxiliary: sites of the guide alone, marked ``infer={"is_auxiliary": True}``.
        global_latents: latent sites outside the data plate.
        unguided: latent sites of the model that the guide does not sample.
        observed: observed sites.
        num_data: length of the batch that was read.
        num_all: length of the whole set; 0 where it is not known.
        plate: name of the data plate.
        nesting: depth of the plates, 1 where there is the data plate alone.
        subsampled: whether the data plate says that the batch stands for more data than it holds.
        uneven: latents that count for a different number of data in the two programs.
        summed: those of the unguided latents that are marked ``infer={"enumerate": "parallel"}``.
        factors: ``pyro.factor`` sites of both programs.
        positions: programs ("model", "guide") that take rows of their batch by the data plate's indices (``x[i]``).
        feeds_back: whether the model computes with what it observes (a decoder that is given its own data, a mask made
            from them), so that data drawn from the model may depend on each other.
    """

    latents: tuple[str, ...]
    auxiliary: tuple[str, ...]
    global_latents: tuple[str, ...]
    unguided: tuple[str, ...]
    observed: tuple[Observed, ...]
    num_data: int
    plate: str
    nesting: int
    subsampled: bool
    uneven: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    num_all: int = 0
    feeds_back: bool = False

    def require_per_datum(self) -> None:
        """Refuse a pair that has no log weight per observation.

        Raises:
            ValueError: naming the latent that is global or that the guide does not sample.
        """
        if self.global_latents:
            raise ValueError(
                f"latent site {self.global_latents[0]!r} is outside the data plate, so it is shared by all data and an "
                "answer per observation is not defined: move it into the plate, or condition the model on a value of it"
            )
        names = [name for name in self.unguided if name not in self.summed]
        if names:
            raise ValueError(
                f"latent site {names[0]!r} of the model is not sampled by the guide, so its log weight is not "
                'defined: sample it in the guide, or mark it infer={"enumerate": "parallel"} where it is discrete'
            )

    def require_sites(self, sampled: Iterable[str]) -> None:
        """Refuse a run of the model whose sites are not those of the batch that was read first.

        Args:
            sampled: names of all latents and observed sites of the run.

        Raises:
            ValueError: naming a site that one batch has and another has not.
        """
        expected = {*self.latents, *self.unguided, *self.global_latents, *(site.name for site in self.observed)}
        if differing := sorted(expected.difference(self.summed) ^ set(sampled).difference(self.summed)):
            raise ValueError(
                f"the model has site {differing[0]!r} for some batches and not for others, but all must have the same "
                "sites: loop over what does not depend on the values in a batch (x.shape[1], not lengths.max()), and "
                "mask what is missing (poutine.mask, .mask(...))"
            )

    def require_latents(self) -> None:
        """Refuse a pair without latents, for a question about latents.

        Raises:
            ValueError: when the guide samples no latents.
        """
        if not self.latents:
            raise ValueError("the pair has no latents that the guide samples, so there is nothing to ask of them")

    def require_guided(self, quantity: str) -> None:
        """Refuse a pair whose guide leaves out latents of the model, since no density of each latent is known then.

        Raises:
            ValueError: naming a latent that the guide leaves out, or when the guide samples no latents.
        """
        self.require_latents()
        if self.summed:
            raise ValueError(
                f"latent site {self.summed[0]!r} is summed out, so that the latents have no {quantity} of their own: "
                "sample it in the guide"
            )
