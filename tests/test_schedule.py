"Chapters 22.1 to 22.5 and the chain of 22, on throw-away notebooks: what a machine does to a run in a night."
import importlib.util, json, os, shutil, subprocess, sys, threading, time
from pathlib import Path

import pytest, yaml

from keepfit_nb import comparison, machine, order, profiles, running, schedules, supervision
from keepfit_nb.profiles import Profile, Run, read_json, write_json
from keepfit_nb.supervision import throwaway


@pytest.fixture
def book(tmp_path, monkeypatch):
    "A book of throw-away chapters: `book(a='code', b='code')` writes them and gives a function that runs the chain."
    def make(**cells):
        (tmp_path / "nbs").mkdir(exist_ok=True)
        names = {f"{90 + i}_{n}": throwaway(tmp_path / "nbs" / f"{90 + i}_{n}.ipynb", c) for i, (n, c) in enumerate(cells.items())}
        for module in (profiles, order, machine, running): monkeypatch.setattr(module, "chapters", lambda: names)
        def go(folder="run", jobs=1, **settings):
            place = tmp_path / folder; place.mkdir(exist_ok=True)
            run = Run("22_running", Profile(name="smoke", device="cpu", sections={"running": dict(retry_seconds=0, **settings)}), place)
            old = read_json(place / "manifest.json", {})
            code = running.Chain(run, list(names), "smoke", {}, dict(old, chapters=old.get("chapters", {})), jobs).go()
            return code, read_json(place / "manifest.json"), place
        return go
    return make


DIES_ONCE = "import os, pathlib; mark = pathlib.Path(run_dir)/'tried'; first = not mark.exists(); mark.touch()\nif first: os.kill(os.getpid(), 9)"


def test_a_killed_kernel_gets_a_second_try_and_nothing_twice(book, tmp_path):
    go = book(a="import os; assert os.environ['IN_TEST'] == '1'; print('x')", b=DIES_ONCE)
    code, manifest, place = go()
    assert code == 0 and manifest["status"] == "ok" and manifest["exit_code"] == 0
    assert manifest["chapters"]["91_b"]["attempts"] == 2 and "attempts" not in manifest["chapters"]["90_a"]
    assert str(tmp_path) not in (place / "manifest.json").read_text()
    log = (place / "log.txt").read_text().splitlines()
    assert "91_b ok at try 2" in log[-1] and all(line[:4].isdigit() for line in log)
    again = go()[1]["chapters"]
    assert {e["status"] for e in again.values()} == {"unchanged"}


def test_a_kernel_that_is_always_killed_ends_the_chain(book):
    code, manifest, _ = book(a="import os; os.kill(os.getpid(), 9)", b="1")(retries=1)
    assert code == 3 and manifest["status"] == "failed" and manifest["chapters"]["90_a"] | dict(kind="killed", attempts=2) == manifest["chapters"]["90_a"]
    assert manifest["chapters"]["91_b"]["status"] == "not run"


def test_a_chapter_that_never_ends_is_ended_with_its_children(book, tmp_path, capsys):
    import psutil
    code = "import subprocess, sys, pathlib\np = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n(pathlib.Path(run_dir)/'child').write_text(str(p.pid))\nwhile True: pass"
    code, manifest, place = book(a=code, b="1")(limits={"90": .15})
    assert code == 3 and manifest["chapters"]["90_a"]["kind"] == "time" and "time limit of 9 s" in manifest["chapters"]["90_a"]["error"]
    child = int((place / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert "attempts" not in manifest["chapters"]["90_a"], "a time limit is no reason for another try"
    assert "--resume goes on from here" in capsys.readouterr().err


def test_more_time_resumes_where_it_stopped(book):
    go = book(a="1", b="import time; time.sleep(4)")
    assert go(limits={"91": .02})[0] == 3
    code, manifest, _ = go(limits={"91": 5}, retries=2)
    assert code == 0 and [e["status"] for e in manifest["chapters"].values()] == ["unchanged", "ok"]


def test_an_error_in_a_cell_is_told_and_not_tried_again(book):
    code, manifest, place = book(a="raise ValueError('broken at /some/where/else/file.png')", b="1")(retries=3)
    entry = manifest["chapters"]["90_a"]
    assert code == 1 and entry["kind"] == "cell" and "ValueError" in entry["error"] and "/some/where" not in entry["error"] and "attempts" not in entry
    assert "ValueError" in (place / "90_a" / "out.ipynb").read_text()


MEETS = "import pathlib, time\nhere = pathlib.Path(run_dir); (here/'{me}').touch()\nend = time.time() + 60\nwhile not (here/'{other}').exists() and time.time() < end: time.sleep(.05)\nassert (here/'{other}').exists()"


def test_stage_manifests_keep_no_path(book, tmp_path):
    code = "import json, pathlib; (pathlib.Path(run_dir)/'90_a'/'manifest.json').write_text(json.dumps(dict(status='ok', settings=dict(root='/home/maria/eyes', run=run_dir + '/x'))))"
    _, _, place = book(a=code)()
    assert read_json(place / "90_a" / "manifest.json")["settings"] == dict(root="…/eyes", run="x")


def test_two_chapters_at_once_where_they_may(book):
    code, manifest, _ = book(a=MEETS.format(me="a", other="b"), b=MEETS.format(me="b", other="a"))(jobs=2)
    assert code == 0, manifest["chapters"]


def test_a_chapter_waits_for_what_it_needs(book):
    slow = "import pathlib, time; time.sleep(2); (pathlib.Path(run_dir)/'made').touch()"
    reads = "import pathlib; assert (pathlib.Path(run_dir)/'made').exists()\nif False: run.need('90_a')"
    code, manifest, _ = book(a=slow, b=reads)(jobs=2)
    assert code == 0, manifest["chapters"]


@pytest.mark.slow
def test_with_two_jobs_a_failure_stops_only_what_may_need_it(book, capfd):
    slow = "import time; time.sleep(4)"
    needs = "if False: run.need('90_a')"
    chapters = dict(a="raise ValueError('broken')", b=slow, c=needs, d="run.need('92_c') if False else None", e="print('free')", f="import os; os.listdir(str(run.dir) if 'run' in globals() else '.')")
    code, manifest, place = book(**chapters)(jobs=2)
    fates = {n: e["status"] for n, e in manifest["chapters"].items()}
    assert fates == {"90_a": "failed", "91_b": "ok", "92_c": "not run", "93_d": "ok", "94_e": "ok", "95_f": "not run"}, fates
    assert code == 1 and manifest["status"] == "failed" and manifest["exit_code"] == 1
    log = (place / "log.txt").read_text()
    assert "92_c not run: it may need 90_a" in log and "95_f not run: it may need 90_a" in log
    # Mended, the same folder is completed, and nothing that ended well is executed again.
    code, manifest, _ = book(**chapters | dict(a="1"))(jobs=2)
    fates = {n: e["status"] for n, e in manifest["chapters"].items()}
    assert code == 0 and fates["91_b"] == fates["94_e"] == "unchanged" and fates["92_c"] == fates["95_f"] == "ok", fates


@pytest.mark.slow
def test_one_after_the_other_it_stops_at_the_first_failure(book):
    code, manifest, _ = book(a="raise ValueError('broken')", b="1")(jobs=1)
    assert code == 1 and manifest["chapters"]["91_b"]["status"] == "not run"


def test_a_full_disk_is_told(book, monkeypatch, capsys):
    go = book(a="print('x' * 10)", b="1")
    sizes = iter([5e9, 1e6]); usage = shutil.disk_usage("/")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda p: usage._replace(free=next(sizes, 1e6)))
    code, manifest, _ = go()
    assert code == 3 and manifest["chapters"]["90_a"]["status"] == "ok" and manifest["chapters"]["91_b"]["status"] == "not run"
    assert "GB free" in capsys.readouterr().err


FULL = """
import resource, sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from keepfit_nb import supervision as s
source = s.throwaway(Path({place!r}) / 'a.ipynb', "print('x' * 300_000)")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
print(s.execute(source, Path({place!r}) / 'out.ipynb', {{}}, s.Watch('a'), retries=0))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are Unix's")
def test_a_notebook_that_cannot_be_written(tmp_path, root):
    done = subprocess.run([sys.executable, "-c", FULL.format(tests=str(root / "tests"), place=str(tmp_path))], capture_output=True, text=True, timeout=120, cwd=root)
    assert "'kind': 'disk'" in done.stdout and "could not be written" in done.stdout, done.stdout + done.stderr[-1500:]


def test_an_interrupt_ends_every_kernel(book):
    import _thread, psutil, signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)       # a shell that starts tests in the background has it ignored
    go = book(a="import time; time.sleep(90)", b="import time; time.sleep(90)")
    threading.Timer(6, _thread.interrupt_main).start()
    try: code, manifest, _ = go(jobs=2)
    finally: signal.signal(signal.SIGINT, before)
    assert code == 130 and manifest["status"] == "interrupted" and {e["status"] for e in manifest["chapters"].values()} == {"interrupted"}
    mine = [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE and "ipykernel" in " ".join(c.cmdline())]
    assert not mine


# --- the folder, the hook, the words ---------------------------------------------------------------------------------------

def test_a_folder_in_use(cli, tmp_path):
    (tmp_path / "run").mkdir()
    with supervision.hold(tmp_path / "run"):
        done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--only", "00")
    assert done.returncode == 75 and f"in use by process {os.getpid()}" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "manifest.json").exists()
    with supervision.hold(tmp_path / "run"): pass


def test_the_hook_hears_of_a_run_that_was_refused(cli, tmp_path):
    hook = [sys.executable, "-c", "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[1] + '.seen')"]
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--only", "00", "--set", f"running.notify={json.dumps(hook)}", "--set", "running.min_free_gb=1000000")
    assert done.returncode == 2 and "GB free" in done.stderr
    notice = read_json(tmp_path / "run" / "notice.json.seen")
    assert notice["status"] == "refused" and notice["exit_code"] == 2 and "GB free" in notice["error"] and str(tmp_path) not in json.dumps(notice)


def test_a_run_that_found_the_folder_in_use_leaves_its_notice_alone(cli, tmp_path):
    "The hook hears of the second run by a file of its own; what the first run wrote stays."
    place = tmp_path / "run"; place.mkdir(); (place / "notice.json").write_text("of the first run")
    hook = [sys.executable, "-c", "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[1] + '.seen')"]
    with supervision.hold(place): done = cli("run", "--profile", "smoke", "--run-dir", place, "--only", "00", "--set", f"running.notify={json.dumps(hook)}")
    assert done.returncode == 75 and (place / "notice.json").read_text() == "of the first run"
    seen, = place.rglob("*.seen"); notice = read_json(seen)
    assert seen.name == "refused.json.seen" and notice["status"] == "in_use" and notice["exit_code"] == 75 and f"in use by process {os.getpid()}" in notice["error"]


@pytest.mark.parametrize("words, message", [
    (["--set", "running.notify=mail me"], "running"), (["--set", "running.limits={\"pretrainig\": 3}"], "did you mean"), (["--jobs", "-1"], "jobs"),
    (["--set", "running.notify=[no-such-command]"], "no command"), (["--set", "running.min_memory_gb=100000"], "GB of memory")])
def test_wrong_settings_of_the_runner(words, message, cli, tmp_path):
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--only", "00", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_hook_gets_one_more_word_and_no_shell(tmp_path):
    bad = supervision.notify([sys.executable, "-c", "import sys; sys.exit(len(sys.argv) + 40)", "; touch " + str(tmp_path / "owned")], tmp_path, {})
    assert "ended with 43" in bad and not (tmp_path / "owned").exists()


def test_date_in_the_folder():
    assert running.run_folder("runs/n-{date}-{profile}", "smoke") == f"runs/n-{time.strftime('%Y%m%d', time.gmtime())}-smoke"
    assert running.run_folder("runs/{other}", "smoke") == "runs/{other}"


def test_pathless_leaves_words_alone():
    home = str(Path.home())
    for text in ("https://x.org/a/b", "1/2", "a/b/c", "~/eyes", "$KEEPFIT_REAL/w", "python -c 'x / y'", "[0.1, 0.2]", "images of FFA/OCT"): assert supervision.pathless(text) == text
    for text in (f"{home}/a", "'/mnt/x/y.png'", "file:/mnt/x/y.png", "C:\\Users\\maria\\x.png", "--root=/data/eyes/a", "a:/mnt/x/y, /mnt/z/q"):
        left = supervision.pathless(text)
        assert home not in left and "/mnt" not in left and "maria" not in left and "/data" not in left, left


# --- order and machine -----------------------------------------------------------------------------------------------------

def test_nothing_in_the_book_needs_a_later_chapter():
    names = list(profiles.chapters())
    for name in names: assert max(order.touched(name)[0]) <= name or order.touched(name)[1], name


def test_played_plan_keeps_every_need():
    names = [n for n in profiles.chapters() if n < "10"]
    plan = {n: (a, b) for n, a, b in order.play(names, {n: 3. + i % 5 for i, n in enumerate(names)}, 3)}
    assert set(plan) == set(names)
    for name in names:
        for other in order.touched(name)[0] & set(names) - {name}: assert plan[other][1] <= plan[name][0], (other, name)
    busy = [sum(a <= t < b for a, b in plan.values()) for t in range(int(max(b for _, b in plan.values())))]
    assert max(busy) == 3


def test_with_several_jobs_what_most_waits_for_goes_first():
    names = list(profiles.chapters()); seconds = dict.fromkeys(names, 1.); left = order.urgency(names, seconds)
    for i, name in enumerate(names):
        assert all(left[name] > left[later] for later in names[i + 1:] if name in order.touched(later)[0]), name
    plan = order.play(names, seconds, 2)
    assert plan[0][0] == max(names, key=left.get) == "03d_captions" and len(plan) == len(names)
    assert [n for n, *_ in order.play(names, seconds, 1)] == names


def test_the_manifest_is_in_the_order_of_the_book(book):
    code, manifest, _ = book(a="1", b="1", c="if False: run.need('91_b')")(jobs=2)       # b begins before a: c waits for it
    assert code == 0 and list(manifest["chapters"]) == ["90_a", "91_b", "92_c"]


def test_every_chapter_has_a_cost_that_can_be_read():
    assert not [n for n in profiles.chapters() if machine.cost_card(n)[0] <= 0]


@pytest.mark.slow
def test_doctor(cli):
    done = cli("doctor"); assert done.returncode == 0, done.stderr
    for word in ("packages", "memory", "disk", "smoke", "full", "fits this machine"): assert word in done.stdout
    found = json.loads(cli("doctor", "--json").stdout)
    assert found["missing"] == [] and found["profiles"]["smoke"]["minutes"] > 0 and set(found["profiles"]) == set(profiles.profile_names())
    assert str(Path.home()) not in json.dumps(found)


def test_minutes_of_a_profile_stand_in_one_place(root):
    "What doctor reckons with is what the profile and the Makefile say."
    said = {p: "under an hour" if m == 60 else f"{m:.0f} minutes on 2 cores" for p, m in machine.MINUTES.items()}
    for name, words in said.items(): assert words in profiles.load_profile(name).about, name
    assert f"(about {said['demo']})" in next(line for line in (root / "Makefile").read_text().splitlines() if line.startswith("run:"))


def test_doctor_reckons_with_the_pace_of_this_machine():
    half_as_fast = dict(profile="smoke", status="ok", chapters={n: dict(status="ok", seconds=2 * machine.cost_card(n)[0]) for n in list(profiles.chapters())[:5]})
    for name in machine.MINUTES:
        known, guessed = machine.how_long(name, [half_as_fast]), machine.how_long(name, [])
        assert known[0] == 2 * guessed[0] == 2 * machine.MINUTES[name] and "2.0 ×" in known[1]
    page = machine.diagnosis(dict(machine.examine(), profiles={"real": dict(obstacles=[], minutes=known[0], known=known[1], about="")}))
    assert "about 120 min, by its card, 2.0 × as this machine takes" in page


def test_doctor_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "requirements", lambda: ["pydantic>=2", "no-such-package>=1", "typer>=99"])
    rows = {r["name"]: r for r in machine.packages()}
    assert rows["pydantic"]["fine"] and not rows["no-such-package"]["have"] and rows["typer"]["have"] and not rows["typer"]["fine"]


# --- compare ---------------------------------------------------------------------------------------------------------------

def test_compare(cli, tmp_path):
    for name, loss in (("a", 1.), ("b", 1.25)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "manifest.json", dict(run=name, profile="smoke", status="ok", commit=name * 40, parameters={"sections": {"pretraining": {"steps": 30}}},
                   chapters={"13_pretraining": dict(status="ok", seconds=3., metrics={"loss": loss, "seconds_per_step": loss})}))
    done = cli("compare", tmp_path / "a", tmp_path / "b", "--check")
    assert done.returncode == 1 and "13_pretraining.loss" in done.stdout and "(+0.25)" in done.stdout and "seconds_per_step" not in done.stdout
    assert json.loads(cli("compare", tmp_path / "a", tmp_path / "b", "--json").stdout)["metrics"] == {"13_pretraining.loss": [1., 1.25]}
    done = cli("compare", tmp_path / "a", tmp_path / "a", "--check"); assert done.returncode == 0 and "the same in all that matters" in done.stdout
    done = cli("compare", tmp_path / "a", tmp_path / "none"); assert done.returncode == 2 and "no such run folder" in done.stderr and "Traceback" not in done.stderr


def test_a_chapter_that_failed_has_no_metrics_to_compare(tmp_path):
    page = lambda status: dict(run="a", chapters={"13_pretraining": dict(status=status, seconds=3., metrics={"loss": 1.})})
    for name in ("ok", "failed"): (tmp_path / name).mkdir(); write_json(tmp_path / name / "manifest.json", page(name))
    found = comparison.compare_runs(tmp_path / "ok", tmp_path / "failed")
    assert found["metrics"] == {"13_pretraining.loss": [1., None]} and found["fates"] == {"13_pretraining": ["ok", "failed"]} and not found["same"]


def test_compare_tells_data_apart(cli, tmp_path):
    "Of three tables that a run read, one row of one was changed; and one table that ships."
    import pandas as pd
    for name, caption, table in (("a", "a haemorrhage", "cc33"), ("b", "two haemorrhages", "dd44")):
        (tmp_path / name / "05_sources").mkdir(parents=True)
        write_json(tmp_path / name / "manifest.json", dict(run=name, profile="smoke", status="ok", data={"categories.csv": table, "texts": "ee55"}, chapters={}))
        for role, text in (("elite", caption), ("public", "normal")):
            pd.DataFrame(dict(caption=[text, "normal"], path=f"/somewhere/{name}")).to_parquet(tmp_path / name / "05_sources" / f"{role}.parquet")
    done = cli("compare", tmp_path / "a", tmp_path / "b", "--check")
    assert done.returncode == 1 and "data        2 differ:" in done.stdout and "categories.csv" in done.stdout and "cc33 → dd44" in done.stdout, done.stdout
    data = json.loads(cli("compare", tmp_path / "a", tmp_path / "b", "--json").stdout)["data"]
    assert set(data) == {"categories.csv", "05_sources.elite"} and all(v.startswith("2 rows, ") for v in data["05_sources.elite"]) and len(set(data["05_sources.elite"])) == 2
    (tmp_path / "b" / "05_sources" / "public.parquet").write_text("torn"); (tmp_path / "b" / "05_sources" / "elite.parquet").unlink()
    data = comparison.compare_runs(tmp_path / "a", tmp_path / "b")["data"]
    assert data["05_sources.public"][1] == "unreadable" and data["05_sources.elite"][1] is None


# --- schedules -------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_schedules_are_written_and_read_by_their_parsers(cli, tmp_path):
    done = cli("schedule", "all", "--plan", "monthly", "-o", tmp_path, "--set", "seeds=[0,1]")
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == sorted(["monthly.crontab", "keepfit-monthly.service", "keepfit-monthly.timer", "keepfit-monthly.yml", "monthly.ipynb", "monthly.job.json", "keepfit_monthly.py", "monthly.sbatch"])
    told = [line for line in done.stdout.splitlines() if line.startswith("    ")]
    assert len(told) >= len(files) and all(line.endswith(": ok") or ": skipped: " in line for line in told)
    verdicts = {}
    for line in told: verdicts.setdefault(line.strip().split(": ", 1)[0], set()).add(line.strip().split(": ", 1)[1])
    must = {"bash -n", "nbformat", "python"} | ({"systemd-analyze calendar", "systemd-analyze verify"} if shutil.which("systemd-analyze") else set()) | ({"check-jsonschema"} if schedules._tool("check-jsonschema") else set())
    must |= {"jupyter-scheduler"} if importlib.util.find_spec("jupyter_scheduler") else set()
    assert {v: verdicts.get(v) for v in must} == {v: {"ok"} for v in must}, "a parser that is installed must have read its file"


@pytest.mark.parametrize("words, message", [
    (["crn"], "did you mean 'cron'"), (["cron", "--plan", "weekli"], "did you mean 'weekly'"), (["cron", "--set", "when=61 3 * * 0"], "minute"), (["cron", "--set", "profil=demo"], "did you mean 'profile'"),
    (["cron", "--set", "profile=dmo"], "did you mean 'demo'"), (["github", "--set", "hours=9"], "6 hours"), (["cron", "--plan", "none.yaml"], "no plan file"), (["cron", "--set", "name=a b"], "name")])
def test_wrong_plans(words, message, cli, tmp_path):
    done = cli("schedule", *words, "-o", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr and not list((tmp_path / "out").glob("*")), done.stderr


HOSTILE = {"sources.texts": ["a b; touch owned", "it's $HOME \"100%\" & <x>"]}


def test_no_value_of_a_plan_becomes_a_command(tmp_path, monkeypatch):
    "The words that a shell hands to the program are the words of the plan, whatever is in them."
    seen = tmp_path / "seen.py"; seen.write_text(f"#!{sys.executable}\nimport json, sys; open('words', 'w').write(json.dumps(sys.argv[1:]))\n"); seen.chmod(0o755)
    monkeypatch.setattr(schedules, "program", lambda: [str(seen)])
    plan = schedules.Plan(name="x", set=HOSTILE)
    sh = lambda text, **env: subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True, env={**os.environ, **env})
    line = schedules.cron(plan, tmp_path)["x.crontab"].splitlines()[-1].split(maxsplit=5)[5].replace("\\%", "%")
    sh(line); assert json.loads((tmp_path / "words").read_text()) == schedules.run_words(plan, 0)[1:]
    sh(schedules.slurm(plan, tmp_path)["x.sbatch"], SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0")
    assert json.loads((tmp_path / "words").read_text())[-2:] == schedules.run_words(plan, 0)[-2:]
    step = next(s for s in yaml.safe_load(schedules.github(plan, tmp_path)["keepfit-x.yml"])["jobs"]["run"]["steps"] if s.get("name") == "run")
    sh(step["run"].replace("keepfit-nb", str(seen), 1), SEED="0"); assert json.loads((tmp_path / "words").read_text())[-2:] == schedules.run_words(plan, 0)[-2:]
    assert not (tmp_path / "owned").exists()


def test_the_service_starts_the_same_words(tmp_path, monkeypatch):
    "systemd's own way of quoting, undone as its manual says."
    import re
    monkeypatch.setattr(schedules, "program", lambda: ["/bin/true"])
    text = schedules.systemd(schedules.Plan(name="x", set=HOSTILE), tmp_path)["keepfit-x.service"]
    start = next(line for line in text.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    words = [w.replace('\\"', '"').replace("\\\\", "\\").replace("%%", "%").replace("$$", "$") for w in re.findall(r'"((?:[^"\\]|\\.)*)"', start)]
    assert words[1:] == schedules.run_words(schedules.Plan(name="x", set=HOSTILE), 0)[1:]


def test_workflow_against_its_schema(tmp_path):
    tool = shutil.which("check-jsonschema") or pytest.skip("check-jsonschema is not installed: pip install check-jsonschema")
    for plan in schedules.PLANS:
        for path in schedules.write_files("github", schedules.read_plan(plan), tmp_path):
            assert schedules._ask(tool, "--builtin-schema", "vendor.github-workflows", path) == ""


def test_committed_workflows_are_those_of_the_plans(root):
    "`keepfit-nb schedule github` writes what lies in .github/workflows; they start by the clock or by hand, never by a push, and may only read."
    made = {name: text for plan in schedules.PLANS for name, text in schedules.github(schedules.read_plan(plan), root).items()}
    assert {p.name: p.read_text(encoding="utf-8") for p in (root / ".github" / "workflows").iterdir()} == made, "run: for p in weekly monthly; do keepfit-nb schedule github --plan $p -o .github/workflows; done"
    for text in made.values():
        flow = yaml.safe_load(text)
        assert set(flow["on"]) == {"schedule", "workflow_dispatch"} and flow["permissions"] == {"contents": "read"}


def test_dag_knows_what_waits_for_what(tmp_path):
    plan = schedules.read_plan("weekly", {"only": ["15"]})
    text = next(iter(schedules.airflow(plan, tmp_path).values())); compile(text, "dag", "exec")
    names = schedules.with_needed(["15_zero_shot"])
    reach = {n: {n} for n in names}
    for n in names: reach[n] |= {m for a, b in schedules.arrows(names) if b == n for m in reach[a]}
    for n in names: assert order.touched(n)[0] & set(names) <= reach[n], "an arrow that was left out does not follow from the others"


@pytest.mark.slow
def test_airflow_itself_reads_the_dag(tmp_path):
    "By choice: KEEPFIT_AIRFLOW is the python of an environment that has Airflow and its papermill provider (CONTRIBUTING.md)."
    python = os.environ.get("KEEPFIT_AIRFLOW") or pytest.skip("KEEPFIT_AIRFLOW is not set: Airflow wants an environment of its own, see CONTRIBUTING.md")
    path, = schedules.write_files("airflow", schedules.read_plan("weekly", {"only": ["15"]}), tmp_path)
    code = "import runpy, sys; dag = runpy.run_path(sys.argv[1])['dag']; print('arrows:', *sorted(f'{a}>{t.task_id}' for t in dag.tasks for a in t.upstream_task_ids))"
    done = subprocess.run([python, "-c", code, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    names = schedules.with_needed(["15_zero_shot"])
    assert set(done.stdout.split("arrows: ")[1].split()) == {f"{a}>{b}" for a, b in schedules.arrows(names)} | {f"folders>{n}" for n in names}


def test_kernels_side_by_side_sleep_while_they_wait(monkeypatch):
    for name in ("OMP_NUM_THREADS", *running.WAITING): monkeypatch.delenv(name, raising=False)
    there = lambda: {n: os.environ.get(n) for n in running.WAITING}; nothing = dict.fromkeys(running.WAITING)
    with running.shared_cores(1): assert there() == nothing
    with running.shared_cores(2): assert there() == running.WAITING
    with pytest.raises(ZeroDivisionError), running.shared_cores(2): 1 / 0
    assert there() == nothing
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "ACTIVE")
        with running.shared_cores(2): assert os.environ[name] == "ACTIVE" and os.environ.get("KMP_BLOCKTIME") is None
        monkeypatch.delenv(name)


@pytest.mark.parametrize("code, found, open_ended", [
    ("LIST = dict(a='09_text_pretraining')\nx = {n: run.need(n) for n in LIST.values()}", {"09_text_pretraining"}, False),
    ("for n, part in {'11_appearance': 'x'}.items(): run.need(n)\nprint([n for n in moved])", {"11_appearance", "x"}, False),
    ("for n in names_from_elsewhere(): run.need(n)", set(), True), ("run.need(n)", set(), True), ("[n for n in ['05_sources']]\nrun.need(n)", set(), True), ("run.need('06_images')", {"06_images"}, False),
    ("print(run.dir.name)", set(), False), ("for f in run.dir.iterdir(): print(f.name)", set(), True), ("print((run.dir / 'x').name)", set(), True)])
def test_what_a_loop_asks_for_is_seen(code, found, open_ended):
    assert order._asked(code) == (frozenset(found), open_ended)
