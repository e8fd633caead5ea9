"""Figures of answers: what they show is what was given."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae import plots
from pyrovae.uses.imputation import Imputations


def imputations(count=40):
    generator = torch.Generator("cpu").manual_seed(0)
    truth = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    missing = torch.zeros(20, 2, dtype=torch.bool)
    missing[:10, 0] = True
    drawn = truth + torch.randn(count, 20, 2, generator=generator, dtype=torch.float64)
    values = torch.where(missing, drawn, truth)
    return Imputations(values, missing, None, np.ones(20, dtype=bool), None, None, np.arange(20), ["a", "b"]), truth


def test_imputed_cells_stand_against_their_truth():
    result, truth = imputations()
    figure = plots.imputed(result, truth)
    low, high = (end.numpy()[:10, 0] for end in result.interval(0.9))
    share = ((low <= truth[:10, 0].numpy()) & (truth[:10, 0].numpy() <= high)).mean()
    assert figure.axes[0].get_title() == f"a: {share:.0%} of 10 inside"
    assert len(figure.axes) == 1
    with pytest.raises(ValueError, match=r"truth must be \[20, 2\]"):
        plots.imputed(result, truth[:5])
    with pytest.raises(ValueError, match="there is nothing to compare, got features=None"):
        plots.imputed(result, torch.full((20, 2), torch.nan))


def test_the_oddest_come_first():
    table = pd.DataFrame(
        {
            "score": [1.0, np.inf, 3.0, 2.0], "pvalue": [0.5, 0.01, 0.02, 0.3], "rejected": [False, True, True, False],
            "feature": ["a", "b", "", "c"], "feature_pvalue": 0.1,
        },
        index=["w", "x", "y", "z"],
    )  # fmt: skip
    axis = plots.ranking(table, count=3).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["x", "y", "z"]
    assert [text.get_text().strip() for text in axis.texts] == ["p = 0.01, b", "p = 0.02", "p = 0.3, c"]


def test_a_way_is_a_strip_of_pictures_or_curves():
    values = torch.rand(5, 2, 12, generator=torch.Generator("cpu").manual_seed(0))
    figure = plots.traversal(values, (1, 3, 4), at=[-2, -1, 0, 1, 2], titles=["one", "two"])
    assert len(figure.axes) == 10
    assert [axis.get_title() for axis in figure.axes[:5]] == ["-2", "-1", "0", "1", "2"]
    np.testing.assert_allclose(figure.axes[7].images[0].get_array(), values[2, 1].reshape(3, 4))
    figure = plots.traversal(values, features=[f"f{k}" for k in range(12)])
    assert len(figure.axes) == 2
    np.testing.assert_allclose(figure.axes[1].lines[3].get_ydata(), values[:, 1, 3])
    assert len(figure.legends[0].get_texts()) == 10
    with pytest.raises(ValueError, match=r"values must be \[V, M, D\]"):
        plots.traversal(values[0])
    with pytest.raises(ValueError, match="at must be one number per point"):
        plots.traversal(values, at=[0, 1])


def test_pictures_in_a_grid():
    images = torch.rand(11, 3 * 4 * 4, generator=torch.Generator("cpu").manual_seed(0))
    figure = plots.grid(images, (3, 4, 4), columns=4, titles=[str(k) for k in range(11)])
    assert sum(bool(axis.images) for axis in figure.axes) == 11
    assert figure.axes[10].get_title() == "10"
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), images[0].reshape(3, 4, 4).permute(1, 2, 0))
