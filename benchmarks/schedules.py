"""Do jupyter-scheduler and Airflow themselves read the files that chapter 22.5 makes for them? Both want an environment of their own, so each gets one in a
temporary folder, which is removed afterwards: python benchmarks/schedules.py  →  benchmarks/results/schedules.json (needs a package index; some minutes)."""
import json, os, subprocess, sys, tempfile, time, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "schedules.json"
if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))

# The job goes into the scheduler's own database and comes back; without its notebook it must be refused.
JUPYTER = """
import json, sys
from pathlib import Path
from jupyter_scheduler.models import CreateJobDefinition
from jupyter_scheduler.environments import CondaEnvironmentManager
from jupyter_scheduler.orm import create_tables
from jupyter_scheduler.scheduler import Scheduler
import jupyter_scheduler
folder = Path(sys.argv[1]); url = f"sqlite:///{folder / 'jobs.sqlite'}"; create_tables(url)
scheduler = Scheduler(root_dir=str(folder), environments_manager=CondaEnvironmentManager(), db_url=url)
seen = {}
for path in sorted(folder.glob("*.job.json")):
    asked = {k: v for k, v in json.loads(path.read_text()).items() if v is not None}
    kept = scheduler.get_job_definition(scheduler.create_job_definition(CreateJobDefinition(**asked)))
    seen[path.name] = dict(schedule=kept.schedule, timezone=kept.timezone, active=kept.active)
    try: scheduler.create_job_definition(CreateJobDefinition(**asked | dict(input_uri="absent.ipynb"))); refused = False
    except Exception as err: refused = type(err).__name__
    seen[path.name]["without its notebook"] = refused
print("\\n" + json.dumps(dict(version=jupyter_scheduler.__version__, files=seen)))
"""
# Airflow fills its bag from the folder as its own processor does, and says what it could not import.
AIRFLOW = """
import json, sys
import airflow
try: from airflow.dag_processing.dagbag import DagBag
except ImportError: from airflow.models.dagbag import DagBag
bag = DagBag(sys.argv[1])
seen = {name: dict(tasks=len(dag.tasks), arrows=sum(len(t.upstream_task_ids) for t in dag.tasks), operators=sorted({type(t).__name__ for t in dag.tasks})) for name, dag in bag.dags.items()}
print("\\n" + json.dumps(dict(version=airflow.__version__, errors=[str(v)[-300:] for v in bag.import_errors.values()], files=seen)))
"""
WANTS = dict(jupyter=(["jupyter-scheduler"], JUPYTER), airflow=(["apache-airflow>=3", "apache-airflow-providers-papermill", "apache-airflow-providers-standard"], AIRFLOW))


def asked(kind: str, folder: Path) -> dict:
    "Install a scheduler into folder/env, write the files of both plans into folder/files, let it read them."
    from keepfit_nb import schedules
    packages, code = WANTS[kind]; files, start = folder / "files", time.time()
    for plan in schedules.PLANS: schedules.write_files(kind, schedules.read_plan(plan), files)
    venv.create(folder / "env", with_pip=True); python = folder / "env" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(AIRFLOW_HOME=str(folder / "home"), AIRFLOW__CORE__LOAD_EXAMPLES="False", JUPYTER_CONFIG_DIR=str(folder / "home"))
    ask = lambda *words: subprocess.run([python, *words], capture_output=True, text=True, env=env, cwd=files)
    done = ask("-m", "pip", "install", "-q", *packages)
    if done.returncode: return dict(installed=False, why=done.stderr.strip().splitlines()[-1][:300])
    installed = round(time.time() - start); done = ask("-c", code, str(files))
    if done.returncode: return dict(installed=True, read=False, why=done.stderr.strip()[-600:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return dict(installed=True, read=bool(found["files"]) and not found.get("errors"), seconds_to_install=installed) | found


if __name__ == "__main__":
    rows = {}
    for kind in sys.argv[1:] or WANTS:
        with tempfile.TemporaryDirectory() as folder: rows[kind] = asked(kind, Path(folder))
        print(kind, json.dumps(rows[kind], indent=1), flush=True)
    old = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(old | rows | dict(python=sys.version.split()[0], command="python benchmarks/schedules.py"), indent=1) + "\n")
