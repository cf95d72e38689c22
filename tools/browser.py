"""Runs a model with onnxruntime-web in a headless Chromium.

    python tools/browser.py RUNTIME CHROMIUM model.onnx in.json out.json

RUNTIME is the folder `onnxruntime-web` in a node_modules. CHROMIUM is the program, or a folder for one: Debian's is
unpacked there, with its driver and all that it needs (1 GB). in.json and out.json are as for javascript/run.mjs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from debian import call, fetch

SECONDS = 120
UNPACKED = "with-driver"
"""An empty file in a folder that holds the program and its driver."""
KINDS = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


def chromium(given: Path) -> tuple[Path, dict[str, str]]:
    """The program, and what it needs in its environment. Beside an unpacked one is its driver, `chromedriver`."""
    if given.is_file():
        return given, {}
    root = given / "root"
    program = root / "usr/lib/chromium/chromium"
    own = call("dpkg", "--print-architecture").strip()
    if not (given / UNPACKED).exists():
        given.mkdir(parents=True, exist_ok=True)
        fetch(given / "apt", own, "bookworm", ("chromium", "chromium-driver"), root)
        shutil.rmtree(given / "apt")
        shutil.copy2(root / "usr/bin/chromedriver", program.with_name("chromedriver"))
        (given / UNPACKED).touch()
    libraries = sorted({str(path.parent) for path in (root / "usr/lib").glob("*-linux-gnu*/**/*.so*")})
    return program, {"LD_LIBRARY_PATH": ":".join(libraries)}


def served(runtime: Path, model: Path, inputs: Path) -> tuple[ThreadingHTTPServer, threading.Event, list[bytes]]:
    """A server of the page and what it asks for; what the page gave back, and whether it has."""
    done, told = threading.Event(), list[bytes]()
    files = {
        "/": Path(__file__).parent / "javascript" / "page.html",
        "/model.onnx": model,
        "/model.onnx.data": model.with_name(f"{model.name}.data"),
        "/in.json": inputs,
        **{f"/ort/{path.name}": path for path in (runtime / "dist").iterdir()},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = files.get(self.path.split("?")[0])
            if path is None or not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", KINDS.get(path.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler), done, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("runtime", "chromium", "model", "inputs", "outputs"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    program, environment = chromium(given.chromium)
    server, done, told = served(given.runtime, given.model, given.inputs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"http://127.0.0.1:{server.server_port}/?data={given.model.name}.data"
    with tempfile.TemporaryDirectory() as home:
        command = [str(program), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}", page]
        browser = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + SECONDS
        while not (came := done.wait(0.2)) and browser.poll() is None and time.monotonic() < deadline:
            pass
        browser.terminate()
        _, said = browser.communicate()
    if not came:
        sys.exit(f"browser.py: nothing came back: {said[-400:]}")
    given.outputs.write_bytes(told[0])
    if told[0].startswith(b'{"error"'):
        sys.exit(f"browser.py: {given.model.name} does not run: {told[0][:300].decode(errors='replace')}")


if __name__ == "__main__":
    main()
