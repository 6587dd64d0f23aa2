"""What is installed: the wheel's contents, and the same package where nothing can be compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def build(folder: Path, **environment: str) -> Path:
    """Build the wheel from the source tree with the build tools of this environment."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--config-settings", f"build-dir={folder / 'build'}", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | environment, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a machine with a compiler builds it."""
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    return build(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a machine builds it whose compilers do not work."""
    return build(tmp_path_factory.mktemp("pure"), CC="/bin/false", CXX="/bin/false")


def names(wheel: Path) -> set[str]:
    """The files inside a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_package_whole(compiled: Path) -> None:
    """Every tracked file of the package is in the wheel, with the licences, and nothing of the tests."""
    tracked = subprocess.run(
        ["git", "ls-files", "--", "src/evenly"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    held = names(compiled)

    assert {name.removeprefix("src/") for name in tracked} <= held
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)
    assert any(name.startswith("evenly/_cpu") and name.endswith(".so") for name in held)
    assert not [name for name in held if name.split("/")[0] in {"tests", "csrc", "docs", "benchmarks"}]
    assert not [name for name in held if Path(name).name.startswith("test_")]


def test_without_a_compiler_the_same_but_the_kernels(compiled: Path, pure: Path) -> None:
    """Where nothing can be compiled the wheel is built all the same and lacks the kernels alone."""
    missing = {name for name in names(compiled) - names(pure) if ".dist-info/" not in name}

    assert missing
    assert all(name.startswith("evenly/_cpu") for name in missing)


# An editable installation's finder would come before PYTHONPATH.
SCRIPT = """
import sys, warnings, torch
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    import evenly
    layer, torchs = evenly.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    for _ in range(2):
        y = layer(x)
        torch.testing.assert_close(y, torchs(x))
    torch.testing.assert_close(layer.running_var, torchs.running_var)
    evenly.show_versions()
print(evenly.__file__)
print(*[str(w.message) for w in heard if "evenly" in str(w.message)], sep="\\n")
"""


def test_without_kernels_layers_work_and_say_so_once(pure: Path, tmp_path: Path) -> None:
    """A compiler-less installation computes what torch does, warns once, and `evenly info` names the lack."""
    with zipfile.ZipFile(pure) as archive:
        archive.extractall(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "EVENLY_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert str(tmp_path) in done.stdout
    assert "not built: every layer runs on torch operations" in done.stdout
    assert done.stdout.count("kernels are not built") == 1
