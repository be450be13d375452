"Colab, imitated: a kernel that began before the project was there, a stub of google.colab, a Drive, a secret, three GPUs, a disconnect."
import json, os, shutil, subprocess, time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
SECRET = "hf_never_show_this_7531"

DRIVE = '''
import os, pathlib
def mount(mountpoint, **_):
    if os.environ.get("DRIVE_REFUSED"): raise ValueError("mount failed")
    there = pathlib.Path(mountpoint); there.mkdir(parents=True, exist_ok=True)
    if not (there / "MyDrive").exists(): (there / "MyDrive").symlink_to(os.environ["THE_DRIVE"])
    print("Mounted at", mountpoint)
'''
USERDATA = '''
import os
class SecretNotFoundError(Exception): pass
def get(name):
    if name not in os.environ.get("THE_SECRETS", "").split(): raise SecretNotFoundError(name)
    return "''' + SECRET + '''"
'''
# What Colab's own kernel has done before the first cell; and the checkout that this environment knows is hidden.
BEFORE = '''
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{getattr(f, '__module__', '')}{getattr(f, '__name__', '')}"]
import os
sys.path[:] = [p for p in sys.path if "/content/" in p or not os.path.exists(os.path.join(p or ".", "keepfit_nb", "__init__.py"))]
import google.colab
'''
GPUS = '''
import torch, types
def pretend(*cards):
    torch.cuda.is_available, torch.cuda.device_count = (lambda: bool(cards)), (lambda: len(cards))
    torch.cuda.get_device_properties = lambda i: types.SimpleNamespace(name=cards[i][0], total_memory=cards[i][1])
pretend({cards})
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "GitHub (a repository in a folder), the stub of google.colab, and a Drive that outlives every machine."
    base = tmp_path_factory.mktemp("colab")
    remote = base / "github" / "keepfit_nb"; files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    for f in files:
        if f and (ROOT / f).is_file() and not f.startswith(("docs/", "benchmarks/", "nbs/exercises/")):
            (remote / f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / f, remote / f)
    git = lambda *words: subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words], cwd=remote, check=True, capture_output=True)
    git("init", "-q", "-b", "main"); git("add", "-A"); git("commit", "-qm", "all")
    colab = base / "stub" / "google" / "colab"; colab.mkdir(parents=True)
    (colab / "__init__.py").write_text("from . import drive, files, userdata\n"); (colab / "files.py").write_text("def download(path): ...\n")
    (colab / "drive.py").write_text(DRIVE); (colab / "userdata.py").write_text(USERDATA)
    (base / "stub" / "sitecustomize.py").write_text(BEFORE)
    (base / "drive").mkdir()
    return base


class Machine:
    "A kernel in an empty /content."
    def __init__(self, base: Path, name: str, **env):
        from jupyter_client import KernelManager
        self.content = base / name / "content"; self.content.mkdir(parents=True)
        keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_TOKEN", "KEEPFIT_DATA", "IN_TEST")}
        self.kernel = KernelManager(kernel_name="python3")
        self.kernel.start_kernel(cwd=str(self.content), env=keep | dict(
            PYTHONPATH=str(base / "stub"), THE_DRIVE=str(base / "drive"), PIP_NO_INDEX="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0=f"url.file://{base / 'github'}/.insteadOf", GIT_CONFIG_VALUE_0="https://github.com/keepfit-nb/") | env)
        self.client = self.kernel.client(); self.client.start_channels(); self.client.wait_for_ready(timeout=300)

    def ask(self, code: str):
        self.client.execute(code, store_history=False)

    def run(self, code: str, seconds: float = 400) -> str:
        "What a cell prints; AssertionError with its traceback when it fails."
        said = []
        def hear(message):
            content = message["content"]
            if message["msg_type"] == "stream": said.append(content["text"])
            assert message["msg_type"] != "error", "\n".join(content["traceback"])
        self.client.execute_interactive(code, output_hook=hear, timeout=seconds, store_history=False)
        return "".join(said)

    def end(self): self.client.stop_channels(); self.kernel.shutdown_kernel(now=True)


@pytest.fixture
def machine(place, request):
    began = []
    def start(name, **env): began.append(Machine(place, name, **env)); return began[-1]
    yield start
    for m in began: m.end()


def setup_cell(chapter: str) -> str:
    "The guarded cell of a chapter, as it stands there."
    cells = ["".join(c["source"]) for c in json.loads((ROOT / "nbs" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    return next(c for c in cells if "google.colab" in c and "git" in c)


TRAINING = '''
import time
from pathlib import Path
import torch
from keepfit_nb.profiles import open_run
from keepfit_nb.training import Settings, fit
run = open_run("08_training", "smoke"); asked = []
class Line(torch.nn.Module):
    def __init__(self): super().__init__(); self.line = torch.nn.Linear(3, 1)
    def forward(self, batch): return dict(loss=(self.line(batch) - batch.sum(1, keepdim=True)).square().mean())
def batches(step):
    asked.append(step); time.sleep({pause})
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
model = Line()
curves = fit(model, batches, Settings(steps=60, save_every=5, log_every=5), run.dir / "colab_training", device="cpu", verbose=False)
'''


def test_setup_disconnect_and_resume(place, machine):
    first = machine("one", THE_SECRETS="HF_TOKEN", DRIVE_REFUSED="1")
    assert "absent" in first.run("import importlib.util\nprint('absent' if importlib.util.find_spec('keepfit_nb') is None else 'there')")

    # No GPU, and the Drive refused: it still works, and says what that means.
    out = first.run(setup_cell("08_training"))
    assert "suggested: profile = 'demo'" in out and "no GPU" in out and "no Drive (ValueError): runs stay on this machine" in out
    assert "secrets taken over: HF_TOKEN" in out and "keepfit_nb is ready" in out
    assert str(first.content) in first.run("import keepfit_nb; print(keepfit_nb.__file__)")

    # The same cell again, on two GPUs, now with the Drive.
    seen = out
    first.run("import os; del os.environ['DRIVE_REFUSED']")
    for card, memory in (("Tesla T4", 15.8e9), ("NVIDIA A100-SXM4-40GB", 42.4e9)):
        first.run(GPUS.format(cards=f"({card!r}, {memory})"))
        out = first.run(setup_cell("13_pretraining")); seen += out
        assert f"{card} with {memory / 1e9:.0f} GB; suggested: profile = 'colab'" in out and "runs are kept on your Drive" in out
    first.run(GPUS.format(cards=""))
    assert not (first.content / "keepfit_nb" / "nbs" / "keepfit_nb").exists(), "cloned a second time"
    assert (first.content / "keepfit_nb" / "runs").resolve() == place / "drive" / "keepfit_nb" / "runs"
    length = first.run("print(len(os.environ['HF_TOKEN']))")
    assert int(length) == len(SECRET) and SECRET not in seen
    child = first.run("import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import keepfit_nb; print(keepfit_nb.__version__)'], capture_output=True, text=True).stdout)")
    assert child.strip(), "a process started here does not find the package"

    # The connection breaks in the middle of a training; its checkpoints lie on the Drive.
    first.ask(TRAINING.format(pause=.2))
    saved, end = place / "drive" / "keepfit_nb" / "runs" / "smoke" / "colab_training" / "checkpoints", time.time() + 300
    steps = lambda: sorted(int(p.name[5:]) for p in saved.glob("step_*") if p.name[5:].isdigit()) if saved.exists() else []
    while time.time() < end and not [s for s in steps() if s >= 10]: time.sleep(.1)
    first.end(); shutil.rmtree(first.content)
    reached = steps()
    assert reached and 10 <= reached[-1] < 60, reached

    # Another day, another machine, another chapter's cell; no secret.
    second = machine("two")
    out = second.run(setup_cell("13_pretraining"))
    assert "there already: smoke" in out and "secrets taken over: none" in out
    said = second.run(TRAINING.format(pause=0) + "\nprint('asked', asked[0], asked[-1], 'rows', len(curves))")
    begin, last = map(int, said.split("asked ")[1].split(" rows")[0].split())
    assert begin >= reached[-1] and last == 59, f"began at step {begin} after a checkpoint at {reached[-1]}"
    assert int(said.split("rows ")[1]) == 12, "the curves of both days are one"


def test_drive_can_be_left_alone(place, machine):
    m = machine("three", KEEPFIT_DRIVE="no")
    out = m.run(setup_cell("08_training"))
    assert "runs stay on this machine" in out and "Mounted" not in out and not (m.content / "keepfit_nb" / "runs").is_symlink()


PIP = '''
import json, os, sys
with open(os.environ["THE_PIP"], "a") as f: f.write(json.dumps(sys.argv[1:]) + "\\n")
'''
HIDE = '''
import os
from importlib import metadata
found = metadata.distributions
metadata.distributions = lambda **k: [] if k.get("name") in ("sacrebleu", "jupyterlab") and not os.path.exists(os.environ["THE_PIP"]) else found(**k)
'''


def test_only_what_is_missing_is_installed(place, machine, tmp_path):
    "One package is not there (and JupyterLab, which Colab does not need): pip is asked for that one, with its bound, once."
    (tmp_path / "pip.py").write_text(PIP); record = tmp_path / "asked.jsonl"
    wanted = next(line.strip() for line in (ROOT / "settings.ini").read_text().splitlines() if line.strip().startswith("sacrebleu"))
    m = machine("four", KEEPFIT_DRIVE="no", THE_PIP=str(record), PYTHONPATH=os.pathsep.join([str(tmp_path), str(place / "stub")]))
    m.run(HIDE)
    for _ in range(2): assert "keepfit_nb is ready" in m.run(setup_cell("08_training"))
    assert [json.loads(line) for line in record.read_text().splitlines()] == [["install", "-q", wanted]]
