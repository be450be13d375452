"""docs/first_hour.md: what a stranger types in the first hour, run for real in a new clone, with the time of every command.

    python docs/first_hour.py PHOTOGRAPH [--from ADDRESS]        a JPEG or PNG of a retina; what to clone, default: this repository

Run it on a machine that does nothing else; it takes as long as it says. The clone is removed afterwards. The photograph is not kept.
"""
import argparse, os, platform, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAST = 14      # lines of an output that are shown
STEPS = [      # (heading, what it is for, command)
    ("Get it", "", "git clone {address} keepfit_nb && cd keepfit_nb"),
    ("Install", "A virtual environment of its own in `.venv`, everything pinned, the package editable.", "make install"),
    ("What can this machine do?", "Packages, memory, device, which profile fits and how long it will take.", ".venv/bin/keepfit-nb doctor"),
    ("Train and evaluate", "Simulated eyes, three models, every protocol, a report.", "make run"),
    ("Classify a photograph of your own", "The latest run is taken when no model is named.", ".venv/bin/keepfit-nb classify my_eye.jpg --labels normal glaucoma \"diabetic retinopathy\""),
    ("Embed a folder", "One row a picture, for whatever you do with vectors.", "mkdir mine && cp my_eye.jpg mine/ && .venv/bin/keepfit-nb embed mine -o mine.parquet"),
    ("The same in five lines", "", ".venv/bin/python -c 'from keepfit_nb import KeepFIT\nmodel = KeepFIT.from_pretrained(\"runs/latest\")\nprobs, _ = model(\"my_eye.jpg\", [\"normal\", \"glaucoma\"], modality=\"CFP\")\nprint(probs.round(2))'"),
]


def spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"


def told(text: str, *places: str) -> str:
    "The last lines of an output, without colours, overwritten progress and this machine's folders."
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text); lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("WARNING: Location")]      # what pip says of a local mirror
    for place in places: lines = [line.replace(place, "…") for line in lines]
    lines = [re.sub(r"(?<!\S)/\S+/(?=python3)", "", line) for line in lines]      # where this machine keeps its Python
    return "\n".join((["…"] if len(lines) > LAST else []) + lines[-LAST:])


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("photograph", type=Path); ask.add_argument("--from", dest="address", default=str(ROOT))
    a = ask.parse_args()
    if not a.photograph.is_file(): sys.exit(f"no photograph at {a.photograph}")
    said, begun = [], time.time()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KEEPFIT", "VIRTUAL_ENV", "PYTHON", "OMP_"))} | dict(COLUMNS="110", TERM="dumb")
    with tempfile.TemporaryDirectory() as home:
        for heading, why, command in STEPS:
            clone = Path(home) / "keepfit_nb"; start = time.time()
            done = subprocess.run(["bash", "-c", command.format(address=a.address)], cwd=clone if clone.exists() else home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            seconds = time.time() - start; print(f"{heading}: {spoken(seconds)}, ended with {done.returncode}", flush=True)
            if done.returncode: sys.exit(done.stdout[-3000:])
            if clone.exists() and not (clone / "my_eye.jpg").exists(): shutil.copy(a.photograph, clone / "my_eye.jpg")
            shown = command.replace("{address}", "https://github.com/keepfit-nb/keepfit_nb")
            said.append(f"## {heading}\n\n{why + chr(10) * 2 if why else ''}```\n$ {shown}\n{told(done.stdout, str(clone), home, str(ROOT))}\n```\n\n*{spoken(seconds)}*\n")
        total = time.time() - begun
    cores = len(os.sched_getaffinity(0)); memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    top = f"""# The first hour

From nothing to a first photograph of one's own, as a stranger does it: every command, the end of what it says, its time. Made by `python docs/first_hour.py` in a new clone on a machine with {cores} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}, no GPU, doing nothing else; together {spoken(total)}. Packages came from a mirror nearby: where they come over a slow line, installing takes longer.
"""
    end = """## And then?

`make lab` opens the chapters. What the report of `make run` says, and what it may not be taken for, stands in [chapter 21](../nbs/21_report.ipynb); a set of your own joins as [How to: add a set](howto/4_add_a_set.md) says. The model above has seen simulated eyes alone, for minutes: its answer for a real photograph is an example of the call, nothing more. For research and teaching, not for diagnosis.
"""
    (ROOT / "docs" / "first_hour.md").write_text("\n".join([top, *said, end]), encoding="utf-8")
    return 0


if __name__ == "__main__": raise SystemExit(main())
