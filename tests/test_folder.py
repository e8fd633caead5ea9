"""A folder of pictures."""

import numpy as np
import pytest
from PIL import Image
from test_own_data import QUICK, TINY, ran

from pyrovae.data import Folder, Static


def write(folder, name, size=(6, 8), colour=False, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3) if colour else size, dtype=np.uint8)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_grey_pictures_with_classes(tmp_path):
    pixels = {
        f"{kind}/{k}.png": write(tmp_path, f"{kind}/{k}.png", seed=k) for kind in ("cats", "dogs") for k in range(5)
    }
    data = Folder(tmp_path)
    assert data.image_shape == (1, 6, 8)
    assert data.classes.tolist() == ["cats"] * 5 + ["dogs"] * 5
    assert data.index.tolist() == sorted(pixels)
    for row, name in zip(data.batch(slice(None))[0], data.index, strict=True):
        np.testing.assert_allclose(row.numpy().reshape(6, 8), pixels[name] / 255, rtol=1e-6)
    assert Folder(tmp_path, binarise=Static()).batch(slice(None))[0].unique().tolist() == [0, 1]


def test_colours_and_sizes(tmp_path):
    write(tmp_path, "a.png", colour=True)
    write(tmp_path, "b.jpg", colour=True)
    data = Folder(tmp_path)
    assert data.image_shape == (3, 6, 8)
    assert data.labels is None
    assert Folder(tmp_path, colour="grey").image_shape == (1, 6, 8)
    write(tmp_path, "c.png", size=(10, 10))
    with pytest.raises(ValueError, match=r"several sizes: 'a.png' is 6 by 8 .*'c.png' 10 by 10: say size="):
        Folder(tmp_path)
    assert Folder(tmp_path, size=(4, 4)).image_shape == (3, 4, 4)


def test_deep_greys_are_not_cut_off(tmp_path):
    Image.fromarray((np.arange(16, dtype=np.uint16) * 4000).reshape(4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 8 bits per pixel"):
        Folder(tmp_path)


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        Folder(tmp_path)
    with pytest.raises(ValueError, match="the path of a folder was expected"):
        Folder(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read a picture from"):
        Folder(tmp_path)
    pixels = write(tmp_path, "a.png", size=(50, 50))
    assert pixels.shape == (50, 50)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot read a picture from"):
        Folder(tmp_path)


def test_the_command_line_takes_a_folder(tmp_path, capsys):
    for k in range(30):
        write(tmp_path / "pictures", f"{k:02d}.png", seed=k)
    ran(capsys, "fit", "--data", "Folder", "--data.path", tmp_path / "pictures", "--likelihood", "ContinuousBernoulli",
        "--out", tmp_path / "run", *TINY)  # fmt: skip
    out = ran(capsys, "evaluate", tmp_path / "run", *QUICK, "--out", tmp_path / "e")
    assert "wrote" in out
    assert ".png" in (tmp_path / "e" / "per_datum.csv").read_text()
