"""Many files in one table, and remote ones by byte ranges."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from evenly.cli import main
from evenly.tools import remote
from evenly.tools.survey import survey


def _state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, 512), nn.BatchNorm1d(512))
    for _ in range(100):
        model(torch.randn(8, 512))
    return model.state_dict()


@pytest.fixture
def server(tmp_path):
    """A server of one file; it counts bytes, knows ranges or not, and may be busy first."""
    save_file(_state(), tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    seen = {"bytes": 0, "ranges": True, "busy": 0, "content": content}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if seen["busy"]:
                seen["busy"] -= 1
                self.send_response(503)
                self.end_headers()
                return
            body = seen["content"]
            if seen["ranges"]:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                body = body[int(first) : int(last) + 1]
            self.send_response(206 if seen["ranges"] else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            seen["bytes"] += len(body)
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/m.safetensors", seen
    http.shutdown()
    thread.join()
    http.server_close()


def test_only_the_norms_are_fetched(server):
    """Header and norms, a small part of the file; the tensors are the file's."""
    address, seen = server

    found = remote.read(address)

    state = _state()
    assert found.keys() == {k for k in state if k.startswith(("1.", "3."))}
    assert all(torch.equal(found[k], state[k]) for k in found)
    assert seen["bytes"] < len(seen["content"]) / 20


def test_a_server_without_ranges_and_a_busy_one(server):
    """The whole file is taken where it is small; a busy server is asked again."""
    address, seen = server
    seen["ranges"] = False
    assert len(remote.read(address)) == 10
    seen.update(ranges=True, busy=2)
    assert len(remote.read(address, pause=0.0)) == 10
    seen["busy"] = 3
    with pytest.raises(ValueError, match="503"):
        remote.read(address, pause=0.0)


@pytest.mark.parametrize("content", [b"<html>", b"\xff" * 64, (40).to_bytes(8, "little") + b"{" * 40, b""])
def test_what_is_no_safetensors_is_refused(server, content):
    """In one line."""
    address, seen = server
    seen["content"] = content

    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        remote.read(address)


def test_a_folder_and_an_address_are_one_table(server, tmp_path):
    """Each file a row, also one that cannot be read; JSON and page say the same; strict fails on it."""
    address, _ = server
    torch.save(nn.BatchNorm1d(2).state_dict(), tmp_path / "new.pt")
    (tmp_path / "broken.pt").write_bytes(b"")
    arguments = ["xray", str(tmp_path), address, "--json", "-"]

    rows = json.loads(CliRunner().invoke(main, arguments).stdout)
    table = CliRunner().invoke(main, ["xray", str(tmp_path), address, "--html", str(tmp_path / "s.html"), "--strict"])

    assert [(r["norms"], r["worst"]) for r in rows] == [(0, None), (2, "note"), (1, "warning"), (2, None)]
    assert table.exit_code == 1
    assert all(r["source"] in table.output for r in rows)
    assert "<script" in (tmp_path / "s.html").read_text()
    assert survey([tmp_path / "new.pt"]).exit_status() == 0
