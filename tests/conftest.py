"Fixtures shared by the tests: one smoke run of the whole chain, small pictures, the real images where they are."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")   # waiting threads do not burn the core that another process needs
os.environ.setdefault("OMP_NUM_THREADS", "1")       # two processes share two cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")          # no test reaches for a hub


def pytest_collection_modifyitems(items):
    "The longest files first: two processes share the files, and none should begin one when the other has nothing left."
    first = ("test_chain.py", "test_running.py", "test_howto.py", "test_repository.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(scope="session")
def root() -> Path:
    "The checkout."
    return ROOT


@pytest.fixture(scope="session")
def cli():
    "Run `keepfit-nb …` as a user would; returns the finished process with its output as text."
    def call(*words, cwd=ROOT, timeout=1700, env=None):
        return subprocess.run([sys.executable, "-m", "keepfit_nb.running", *map(str, words)], cwd=cwd, timeout=timeout,
                              capture_output=True, text=True, env={**os.environ, **(env or {})})
    return call


SPINE = ("03d", "05", "06", "07", "13", "13a", "14", "15", "16", "17", "21")      # from simulated eyes to the report; the other chapters explain or deepen


@pytest.fixture(scope="session")
def smoke_run(cli, tmp_path_factory) -> Path:
    "Folder of a smoke run of the spine, through papermill."
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = cli("run", "--profile", "smoke", "--run-dir", folder, "--only", *SPINE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def real() -> Path:
    "Folder of the real images; tests that ask for it skip where it is absent."
    from keepfit_nb.profiles import real_folder
    if not (real_folder() / "records.csv").exists():
        pytest.skip("the real images are not here: set KEEPFIT_REAL to their folder")
    return real_folder()
