"""How a command splits its data."""

from dataclasses import asdict, dataclass

from pyrovae.common.checks import at_least
from pyrovae.data import Data, Splits


@dataclass(frozen=True)
class Split:
    """How the data are split: at random, unless a column is named.

    Args:
        validation: share of the data for validation; null takes 0.1, or the data's own.
        test: share of the data for testing; null takes 0.2, or the data's own test set.
        stratify: column of a table, or "label", of whose classes every part has its share.
        groups: column of a table whose groups are in one part each; by default the one in the role of a subject or
            group.
        time: column of a table by whose times training comes first, and testing last.
        parts: column of a table that says "train", "validation" or "test".
        num_folds: number of folds of a cross-validation (compare); 0 makes one split.
    """

    validation: float | None = None
    test: float | None = None
    stratify: str | None = None
    groups: str | None = None
    time: str | None = None
    parts: str | None = None
    num_folds: int = 0

    def per_fold(self, num_seeds: int) -> "Split":
        """Return the split after a check that a cross-validation has one fit per fold."""
        if self.num_folds and num_seeds > 1:
            raise ValueError("a cross-validation has one fit per fold: leave num_seeds out, or split.num_folds")
        return self

    def of(self, data: Data, seed: int) -> list[Splits]:
        """Return the parts of the data: of the one split, or of every fold.

        Raises:
            ValueError: for what the data or a cross-validation do not allow.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        num_folds = at_least("split.num_folds", given.pop("num_folds"), 0)
        if not num_folds:
            return [data.splits(seed=seed, **given)]
        if unused := sorted(given.keys() & {"test", "time", "parts"}):
            raise ValueError(f"a cross-validation tests every fold in turn, and takes no split.{unused[0]}")
        return data.folds(num_folds, seed=seed, **given)


ONE_SPLIT = Split()
