"""Prepare a fresh Colab machine, from the first cell of any chapter. What is missing gets installed; the package becomes importable, here
and for processes started here; runs go to your Drive, so that they outlive this machine; secrets are taken over, never shown; a profile is
suggested for the GPU found. Running it again changes nothing. KEEPFIT_DRIVE=no in the environment leaves the Drive alone."""
import configparser, importlib, os, re, subprocess, sys
from importlib import metadata
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
ini.read(root / "settings.ini", encoding="utf-8")


def missing(requirement: str) -> bool:
    "Is the distribution behind `name>=version` absent? Versions that Colab ships are kept."
    return not any(True for _ in metadata.distributions(name=re.split(r"[<>=]", requirement)[0]))


def importable() -> None:
    "This kernel began before the package was here."
    if str(root) not in sys.path: sys.path.insert(0, str(root))
    behind = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(root)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *behind])
    if getattr(sys.modules.get("keepfit_nb"), "__file__", "") is None: del sys.modules["keepfit_nb"]      # an import that met the bare folder
    importlib.invalidate_caches()


def runs_on_drive() -> str:
    "Let runs/ be a folder of your Drive. Returns what to say about it; a refused Drive is no error."
    runs, note = root / "runs", "runs stay on this machine and end with it"
    if os.environ.get("KEEPFIT_DRIVE", "").lower() in ("no", "0", "false"): return note
    if not runs.is_symlink():
        if runs.exists() and any(runs.iterdir()): return f"runs/ holds work already, so {note}; copy it to your Drive and start the machine anew"
        try:
            from google.colab import drive
            drive.mount(str(root.parent / "drive"))
            place = root.parent / "drive" / "MyDrive" / "keepfit_nb" / "runs"
            place.mkdir(parents=True, exist_ok=True)
        except Exception as err: return f"no Drive ({type(err).__name__}): {note}"                  # refused, or another account's
        if runs.exists(): runs.rmdir()
        runs.symlink_to(place, target_is_directory=True)
    found = sorted(p.name for p in runs.iterdir() if p.is_dir() and not p.is_symlink())
    return "runs are kept on your Drive, in MyDrive/keepfit_nb/runs" + (f"; there already: {', '.join(found)}. The same parameters go on where they stopped" if found else "")


def take_secrets() -> list[str]:
    "Secrets of Colab's key symbol that this notebook may read, as environment variables. Returns their names."
    from google.colab import userdata
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        try: value = os.environ.get(name) or userdata.get(name)
        except Exception: value = ""                                       # not there, or not for this notebook
        if value: os.environ[name] = value
    return [name for name in ("HF_TOKEN", "WANDB_API_KEY") if os.environ.get(name)]


def cards() -> str:
    import torch
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ", ".join(f"{p.name} with {p.total_memory / 1e9:.0f} GB" for p in found) or "no GPU (Runtime → Change runtime type gives one)"


wanted = [r for r in ini["DEFAULT"]["requirements"].split() if missing(r) and not r.startswith("jupyterlab")]
if wanted: subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
importable()

from keepfit_nb.profiles import suggest_profile

print(runs_on_drive())
print("secrets taken over:", ", ".join(take_secrets()) or "none; HF_TOKEN is needed for gated models only")
print(f"{cards()}; suggested: profile = {suggest_profile()!r}")
print("keepfit_nb is ready")
