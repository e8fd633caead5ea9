"""Documents as counts of words."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyrovae.data.data import Data
from pyrovae.programs.isolation import importing


class Documents(Data):
    """Counts of words, ``[N, D]``, with each document's own total as a further tensor of every batch, ``[N, 1]``.

    The totals are the exposure: a ``likelihoods.Multinomial()`` gives the density of the words given their number, and
    its draws have that number. Words are counted by scikit-learn's ``CountVectorizer``.

    Args:
        texts: the documents, one string each; or the path of a text file with one document per line.
        vocabulary: the words to count, in order (``feature_names`` of the training documents); None takes those of the
            texts.
        max_features: largest number of words, the most frequent ones; None takes all.
        min_documents: number of documents that a word must be in.
        stop_words: "english", or words that are not counted.

    Raises:
        ValueError: for texts that hold no word, for a document without any counted word, and for a file that cannot be
            read.

    Example:
        >>> documents = Documents(["a tale of two cities", "two tales"], min_documents=1)
        >>> documents.feature_names
        ['cities', 'of', 'tale', 'tales', 'two']
        >>> [tensor.tolist() for tensor in documents.batch(slice(1, 2))]
        [[[0.0, 0.0, 0.0, 1.0, 1.0]], [[2.0]]]
    """

    def __init__(
        self,
        texts: Sequence[str] | str | Path,
        *,
        vocabulary: Sequence[str] | None = None,
        max_features: int | None = None,
        min_documents: int = 2,
        stop_words: str | list[str] | None = None,
    ) -> None:
        if isinstance(texts, str | os.PathLike):
            self.path, texts = Path(texts), _lines(Path(texts))
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts must be a list of strings, or the path of a text file, got {type(texts).__name__}")
        with importing():
            from sklearn.feature_extraction.text import CountVectorizer
        options: dict[str, Any] = {"max_features": max_features, "stop_words": stop_words}
        words = None if vocabulary is None else list(vocabulary)
        try:
            vectorizer = CountVectorizer(vocabulary=words, min_df=min_documents, **options)
            counts = vectorizer.fit_transform(texts).toarray()
        except ValueError as error:  # of parameters, or of an empty vocabulary
            raise ValueError(f"the words cannot be counted: {error}") from None
        empty = counts.sum(1) == 0
        if empty.any():
            raise ValueError(
                f"document {int(empty.argmax())} has no counted word ({int(empty.sum())} in all): leave it out, or "
                "count more words"
            )
        super().__init__(torch.from_numpy(counts), feature_names=vectorizer.get_feature_names_out().tolist(), levels=1)
        self.fields = self.with_totals().fields


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read documents from {str(path)!r}: {reason}") from None
