"""Files: written whole or not at all, never onto what is read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest

from evenly.tools import files


def _links(folder, path):
    """The names that lead to a file."""
    (soft := folder / "soft").symlink_to(path)
    os.link(path, hard := folder / "hard")
    (folder / "sub").mkdir()
    return [path, soft, hard, folder / "sub" / ".." / path.name, os.path.relpath(path)]


def test_an_output_is_never_an_input(tmp_path):
    """By its own name, a symbolic link, a hard link, another spelling, a relative path: refused, untouched."""
    (path := tmp_path / "a.pt").write_bytes(b"precious")

    for name in _links(tmp_path, path):
        with pytest.raises(ValueError, match=r"--json .* is a file that is read"):
            files.check_outputs({"--json": name}, [None, path])
        with pytest.raises(ValueError, match="is a file that is read"):
            files.write(name, "x", inputs=[path])
    assert path.read_bytes() == b"precious"


def test_two_outputs_are_two_files(tmp_path):
    """Also where neither exists yet, and by a link; the same stream twice is fine."""
    (tmp_path / "link").symlink_to(tmp_path / "x")

    for other in ("x", "link", "./x"):
        with pytest.raises(ValueError, match="would both write"):
            files.check_outputs({"--json": tmp_path / "x", "--html": f"{tmp_path}/{other}"})
    files.check_outputs({"--json": "/dev/null", "--html": "/dev/null"})


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    """A missing folder, a folder, a file in the folder's place, a folder of the system: one line each, nothing made."""
    (tmp_path / "file").write_text("")
    wrong = {
        tmp_path / "no" / "x": "there is no folder",
        tmp_path: "is a folder; give the name of a file in it",
        tmp_path / "file" / "x": "there is no folder",
        "/proc/x": "cannot write /proc/x",
    }
    for path, said in wrong.items():
        with pytest.raises(ValueError, match=said):
            files.check_outputs({"--json": path})
    files.check_outputs({"--json": tmp_path / "new"})
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    """An error on the way, also Ctrl-C, leaves the old file and nothing beside it."""
    (path := tmp_path / "x").write_text("old")

    def write_half(error):
        with files.replacing(path) as file:
            file.write(b"half")
            raise error

    for error in (RuntimeError, KeyboardInterrupt, OSError):
        with pytest.raises(error):
            write_half(error)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """Where the bytes have no room there is an `OSError`, and no stump."""
    (path := tmp_path / "x").write_text("old")
    script = (
        "import resource, signal, sys\nfrom evenly.tools import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write(sys.argv[1], b'x' * 5000)\n"
        "except OSError as error: print('refused', error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("refused")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_permissions_and_links_stay(tmp_path):
    """A replaced file keeps its mode, a link keeps pointing, and a new file has the usual mode."""
    (path := tmp_path / "x").write_text("old")
    path.chmod(0o640)
    (link := tmp_path / "link").symlink_to(path)
    files.write(link, "new")
    files.write(tmp_path / "fresh", "new")
    (plain := tmp_path / "plain").write_text("")

    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (tmp_path / "fresh").stat().st_mode == plain.stat().st_mode


def test_streams_are_written_to_and_stay_streams(tmp_path):
    """`/dev/null` is not replaced by a file, and a pipe gets the bytes."""
    files.write("/dev/null", "x")
    os.mkfifo(pipe := tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, "through")
    reader.join()

    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert read == [b"through"]


def test_half_a_sign_in_a_text_is_written_as_its_number(tmp_path):
    """What a file's name that is no UTF-8 becomes in Python has bytes of its own nowhere."""
    files.write(tmp_path / "x", '"\udcff"')

    assert (tmp_path / "x").read_text() == '"\\udcff"'
