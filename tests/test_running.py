"Chapter 22: the chain, its manifest, its exit codes, killed processes, the command line."
import contextlib, json, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

from keepfit_nb import running
from keepfit_nb.profiles import DISCLAIMER, chapters, read_json

from conftest import SPINE


def ended_well(folder, names):
    manifest = read_json(folder / "manifest.json")
    assert manifest["status"] == "ok" and manifest["exit_code"] == 0
    assert list(manifest["chapters"]) == names
    for name, entry in manifest["chapters"].items():
        assert entry["status"] == "ok" and entry["seconds"] > 0 and isinstance(entry["metrics"], dict), name
        built = set(re.findall(r"building (\w+) …", (folder / name / "out.ipynb").read_text(encoding="utf-8")))
        assert not (built - {name}) & set(names), f"{name} built again what an earlier chapter had built"
    assert manifest["parameters"]["name"] == "smoke" and manifest["versions"]["torch"] and manifest["commit"]
    assert str(folder) not in (folder / "manifest.json").read_text()
    page = (folder / "21_report" / "report.html").read_text()
    assert DISCLAIMER in page and "not run yet" not in page and page.count("<table>") >= 5


def test_spine_ends_well(smoke_run):
    ended_well(smoke_run, running.choose(only=SPINE))


def test_second_run_finds_nothing_to_do(smoke_run, cli):
    before = {p: p.stat().st_mtime_ns for p in smoke_run.glob("*/out.ipynb")}
    done = cli("run", "--profile", "smoke", "--run-dir", smoke_run, "--only", *SPINE)
    assert done.returncode == 0, done.stderr
    assert {e["status"] for e in read_json(smoke_run / "manifest.json")["chapters"].values()} == {"unchanged"}
    assert before == {p: p.stat().st_mtime_ns for p in smoke_run.glob("*/out.ipynb")}


def test_lost_artefact_is_made_again(smoke_run, cli, tmp_path):
    copy = tmp_path / "run"; shutil.copytree(smoke_run, copy); shutil.rmtree(copy / "15_zero_shot")
    done = cli("run", "--profile", "smoke", "--run-dir", copy, "--only", "14", "15")
    assert done.returncode == 0, done.stderr
    found = read_json(copy / "manifest.json")["chapters"]
    assert found["14_evaluation"]["status"] == "unchanged" and found["15_zero_shot"]["status"] == "ok"


def test_folder_of_another_run_or_commit(smoke_run, cli, tmp_path):
    done = cli("run", "--profile", "smoke", "--seed", 5, "--run-dir", smoke_run, "--only", "00")
    assert done.returncode == 2 and "holds a run of profile 'smoke', seed 0" in done.stderr
    copy = tmp_path / "run"; shutil.copytree(smoke_run, copy)
    manifest = read_json(copy / "manifest.json"); manifest["commit"] = "0" * 40; (copy / "manifest.json").write_text(json.dumps(manifest))
    done = cli("run", "--profile", "smoke", "--run-dir", copy, "--only", "00")
    assert done.returncode == 0 and "begun at commit 00000000" in done.stdout


@pytest.mark.parametrize("words, message", [
    (["--profile", "dmo"], "did you mean 'demo'"), (["--from", "pretrainig"], "did you mean"), (["--from", "13", "--to", "5"], "comes after"),
    (["--only", "99"], "unknown chapter"), (["--set", "pretraining.step=3"], "did you mean 'steps'"), (["--set", "pretraining.steps"], "expected section.key=value"),
    (["--set", "pretrainin.steps=3"], "did you mean 'pretraining'"), (["--set", "running.min_free_gb=1000000"], "GB free"),
    (["--set", "encoders.image_model=resnet10"], "resnet10t")])
def test_wrong_words_start_nothing(words, message, cli, tmp_path):
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run" / "manifest.json").exists()


def test_from_a_number_begins_with_its_supporting_chapters(cli):
    names = list(chapters()); supporting = [n for n in names if n.startswith("05.")]
    assert supporting and running.choose("05", "05") == running.choose("5", "sources") == [*supporting, "05_sources"]
    assert running.choose("sources", "05") == running.choose("05_sources", "05") == ["05_sources"] == running.choose(only=["05"])
    assert running.choose("05.3", "05")[0] == "05.3_layouts"
    for n in names:                                            # whatever the number, nothing of another number slips in
        number = n.split("_")[0]; found = running.choose(number, number)
        assert found[-1] == n and all(f == n or f.startswith(f"{number}.") for f in found), (n, found)
    assert "05.1" in cli("run", "--help").stdout


def test_resume_without_a_run(cli, tmp_path):
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "none", "--resume")
    assert done.returncode == 2 and "nothing to resume" in done.stderr


def test_help_and_unknown_command(cli):
    assert DISCLAIMER in cli("--help").stdout
    assert cli("clasify").returncode == 2
    done = cli("doctor"); assert done.returncode == 0 and "fits this machine" in done.stdout


def test_sources_list(cli):
    table = cli("sources", "list").stdout; assert "phantoms" in table
    assert any(row["name"] == "phantoms" for row in json.loads(cli("sources", "list", "--json").stdout))


def test_sources_check_and_fetch(cli, tmp_path):
    from keepfit_nb.replicas import make_replica
    made = make_replica("FIVES", tmp_path / "sets", 1)
    done = cli("sources", "check", made); assert done.returncode == 0 and "FIVES" in done.stdout, done.stderr
    next(p for p in sorted(made.rglob("*")) if p.suffix in (".png", ".jpg")).unlink()
    done = cli("sources", "check", made, "--name", "FIVES"); assert "missing" in done.stdout
    done = cli("sources", "check", tmp_path / "nowhere"); assert done.returncode == 2 and "nowhere" in done.stderr and "sources check FOLDER" in done.stderr and "Traceback" not in done.stderr
    done = cli("sources", "fetch", "LAG"); assert done.returncode == 2 and "write to its owners" in done.stderr and "--url" in done.stderr
    done = cli("sources", "fetch", "LAGG"); assert done.returncode == 2 and "did you mean" in done.stderr


def test_classify_and_embed(smoke_run, cli, tmp_path):
    import pandas as pd
    model, images = smoke_run / "13_pretraining", tmp_path / "mine"; images.mkdir()
    for i, p in enumerate(sorted((smoke_run / "03d_captions" / "images").iterdir())[:3]): shutil.copy(p, images / f"{i}{p.suffix}")
    (images / "broken.png").write_text("not a picture")
    first = next(images.glob("0.*"))
    done = cli("classify", first, "--labels", "normal", "glaucoma", "--model", model)
    assert done.returncode == 0 and "glaucoma 0." in done.stdout and DISCLAIMER in done.stdout, done.stderr
    done = cli("embed", images, "-o", tmp_path / "out.parquet", "--model", model)
    assert done.returncode == 0 and "left out broken.png" in done.stderr
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert len(table) == 3 and len(set(map(len, table.embedding))) == 1 and not Path(table.image[0]).is_absolute()
    for words, message in ((["classify", images / "none.png", "--labels", "a", "b"], "no such image"), (["classify", first, "--labels", "a"], "at least two"),
                           (["classify", images / "broken.png", "--labels", "a", "b", "--model", model], "broken.png"),
                           (["embed", tmp_path / "nowhere"], "no such folder"), (["classify", first, "--labels", "a", "b", "--model", tmp_path], "config.json")):
        done = cli(*words); assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    (tmp_path / "empty").mkdir(); assert "no image" in cli("embed", tmp_path / "empty").stderr


def test_report_of_an_empty_folder(cli, tmp_path):
    done = cli("report", tmp_path); assert done.returncode == 0 and "No zero-shot results" in (tmp_path / "21_report" / "report.html").read_text()
    assert cli("report", tmp_path / "none").returncode == 2


# --- processes that are killed -------------------------------------------------------------------------------------------

def start(folder, *words, **kwargs):
    return subprocess.Popen([sys.executable, "-m", "keepfit_nb.running", "run", "--profile", "smoke", "--run-dir", str(folder), "--only", "00", "02", *words],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def kernel_of(process, seconds=300):
    "The kernel that a runner has started."
    import psutil
    for _ in range(seconds * 20):
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):                       # a short-lived child (git) may be gone already
                if "ipykernel" in " ".join(child.cmdline()): return child
        if process.poll() is not None: break
        time.sleep(.05)
    raise AssertionError("no kernel was started")


def test_killed_kernel_fails_and_resumes(tmp_path, cli):
    process = start(tmp_path / "run", "--set", "running.retries=0"); kernel = kernel_of(process); time.sleep(1); kernel.kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3, out + err
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["status"] == "failed" and "kernel died" in manifest["chapters"]["00_profiles"]["error"]
    assert manifest["chapters"]["02_records"]["status"] == "not run"
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--only", "00", "02", "--resume")
    assert done.returncode == 0 and read_json(tmp_path / "run" / "manifest.json")["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("sign, code", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_interrupted_runner_resumes(sign, code, tmp_path, cli):
    import psutil
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)       # a shell that starts the tests in the background has it ignored
    process = start(tmp_path / "run", preexec_fn=heard); kernel = kernel_of(process); time.sleep(1.5); process.send_signal(sign)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    _, alive = psutil.wait_procs([kernel], timeout=60); assert not alive, "the kernel outlived its runner"
    assert read_json(tmp_path / "run" / "manifest.json")["status"] == ("running" if sign == signal.SIGKILL else "interrupted")
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--only", "00", "02", "--resume")
    assert done.returncode == 0, done.stderr


def test_terminated_in_the_background(tmp_path):
    "A shell starts background jobs with SIGINT ignored, as nohup and schedulers do: SIGTERM must end them all the same."
    process = start(tmp_path / "run", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    kernel_of(process); time.sleep(1.5); process.terminate(); process.communicate(timeout=60)
    assert process.returncode == 130 and read_json(tmp_path / "run" / "manifest.json")["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("place, source, left", [(".", "nbs/13_pretraining.ipynb", "13_pretraining/default.json"), ("nbs", "06_images.ipynb", "06_images/cache.json")])
def test_papermill_alone(place, source, left, root, tmp_path):
    "A chapter on its own, as a reader would run it, from the root and from nbs/."
    done = subprocess.run([sys.executable, "-m", "papermill", source, str(tmp_path / "out.ipynb"), "-p", "profile", "smoke", "-p", "run_dir", str(tmp_path / "run")],
                          cwd=root / place, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / left).exists()
