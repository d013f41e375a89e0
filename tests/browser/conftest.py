"""A real JupyterLab on a copy of the workbench, and a real Chromium that looks at it. What is missing is said, and skips these tests alone."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync")
LOCAL = ("http://localhost:", "ws://localhost:", "data:", "blob:", "about:")


def free_port():
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with the workbench alone: its runs stay there."
    made = tmp_path_factory.mktemp("studio")
    (made / "nbs").mkdir()
    shutil.copy(ROOT / "nbs" / "workbench.ipynb", made / "nbs")
    return made


def serve(command, folder):
    "Start a server; its address, and the process, when it answers."
    port = free_port()
    settings = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data"), "GOMP_SPINCOUNT": "20000",
                "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    log = open(folder / "server.log", "ab")
    process = subprocess.Popen([sys.executable, "-m", *command, f"--port={port}"], cwd=folder, stdout=log, stderr=log, env=settings)
    address, end = f"http://localhost:{port}", time.monotonic() + 120
    while True:
        try:
            with socket.create_connection(("localhost", port), timeout=5): return address, process
        except OSError:
            assert process.poll() is None and time.monotonic() < end, (folder / "server.log").read_text("utf-8", "replace")[-2000:]
            time.sleep(0.2)


@pytest.fixture(scope="module")
def lab(folder):
    command = ("jupyter", "lab", "--no-browser", "--ServerApp.root_dir=.", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
               "--allow-root")
    address, process = serve(command, folder)
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def app(folder):
    address, process = serve(("voila", "nbs/workbench.ipynb", "--no-browser", "--template=workbench", "--strip_sources=True"), folder)
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None: pytest.skip("Chromium is not installed (Debian: apt-get install chromium): the studio is not seen in a browser.")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
    with playwright.sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, tmp_path):
    "A page that must raise no error and ask nothing of the network; what it looked like at the end is kept."
    made, errors, outside = browser.new_page(viewport={"width": 1280, "height": 800}), [], []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("request", lambda request: None if request.url.startswith(LOCAL) else outside.append(request.url))
    yield made
    made.screenshot(path=tmp_path / "page.png")
    made.close()
    assert (errors, outside) == ([], [])
