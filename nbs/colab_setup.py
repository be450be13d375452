"Prepare a fresh Colab machine: what is missing gets installed, the package gets importable, a profile is suggested."
import configparser, os, re, subprocess, sys
from importlib import metadata
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
ini.read(root / "settings.ini", encoding="utf-8")


def missing(requirement):
    "Is the distribution behind `name>=version` absent? Versions that Colab ships are kept."
    return not any(True for _ in metadata.distributions(name=re.split(r"[<>=]", requirement)[0]))


wanted = [r for r in ini["DEFAULT"]["requirements"].split() if missing(r) and not r.startswith("jupyterlab")]
if wanted:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
if str(root) not in sys.path:
    sys.path.insert(0, str(root))
os.chdir(root / "nbs")

from keepfit_nb.profiles import suggest_profile

print(f"keepfit_nb is ready; suggested: profile = {suggest_profile()!r}")
