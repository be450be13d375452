"Chapter 00: profiles, run folders, stages."
from pathlib import Path

import pytest
from pydantic import BaseModel

from keepfit_nb import profiles as p


class Draw(BaseModel, extra="forbid"):
    count: int = 2


@pytest.fixture
def chain(monkeypatch, tmp_path):
    "Two toy stages; `calls` records what was built."
    calls, table = [], {}
    def draw(run, folder, settings, inputs): calls.append("draw"); p.write_json(folder / "n.json", settings.count if settings else 2)
    def double(run, folder, settings, inputs): calls.append("double"); return {"twice": 2 * p.read_json(inputs["01_draw"] / "n.json")}
    table |= {"01_draw": p.Stage("01_draw", draw, settings=Draw), "02_double": p.Stage("02_double", double, ("01_draw",))}
    monkeypatch.setattr(p, "find_stage", lambda name: table[name])
    run = lambda **sections: p.Run("x", p.Profile(name="t", sections=sections), tmp_path / "run")
    return run, calls, table


@pytest.mark.parametrize("name", ["smoke", "demo", "real", "colab", "full"])
def test_shipped_profiles_are_valid(name):
    from keepfit_nb.running import check_profile
    check_profile(p.load_profile(name))


@pytest.mark.parametrize("overrides, word", [
    ({"pretrainin.steps": 3}, "did you mean 'pretraining'"), ({"captions": 3}, "must hold"),
    ({"seeds": "all"}, "seeds"), ({"default_variant": "keepfitt"}, "did you mean 'keepfit'"), ({"a.b": 1, "a.b.c": 2}, "set twice")])
def test_wrong_overrides_fail_at_once(overrides, word):
    with pytest.raises(ValueError, match=word): p.load_profile("smoke", overrides)


def test_unknown_profile_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'smoke'"): p.load_profile("smok")
    with pytest.raises(FileNotFoundError, match="no profile file"): p.load_profile(str(tmp_path / "none.yaml"))
    for text, word in (("a: [", "not valid YAML"), ("- 1", "expected 'key: value'"), ("extends: nothing", "unknown profile")):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ValueError, match=word): p.load_profile(str(tmp_path / "p.yaml"))


def test_own_profile_extends(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: smoke\nseeds: [4]\nvariants:\n  keepfit: {}\n")
    mine = p.load_profile(str(tmp_path / "mine.yaml"))
    assert mine.name == "mine" and mine.seeds == [4] and list(mine.variants) == ["keepfit"]


def test_stage_is_built_once_and_again_when_settings_change(chain):
    run, calls, _ = chain
    assert p.read_json(run().need("02_double") / "metrics.json") == {"twice": 4}
    run().need("02_double"); assert calls == ["draw", "double"]
    assert p.read_json(run(draw={"count": 5}).need("02_double") / "metrics.json") == {"twice": 10}
    assert calls == ["draw", "double"] * 2


def test_seed_and_source_are_part_of_the_fingerprint(chain, monkeypatch):
    run, _, _ = chain
    a, b = run(), run(); b.seed = 1
    assert a.fingerprint("02_double") != b.fingerprint("02_double")
    monkeypatch.setattr(p, "source_fingerprint", lambda *args: "other")
    assert run().fingerprint("02_double") != a.fingerprint("02_double")


def test_killed_stage_keeps_its_partial_work(chain):
    run, calls, table = chain
    r = run(); folder = r.folder("01_draw"); folder.mkdir(parents=True)
    p.write_json(folder / "manifest.json", {"status": "running", "fingerprint": r.fingerprint("01_draw")})
    (folder / "half.bin").write_text("partial")
    r.need("01_draw")
    assert (folder / "half.bin").exists() and calls == ["draw"]


def test_work_of_another_commit_is_replaced_but_strange_files_are_not(chain):
    run, calls, _ = chain
    r = run(); folder = r.folder("01_draw"); folder.mkdir(parents=True)
    p.write_json(folder / "manifest.json", {"status": "ok", "fingerprint": "another"}); (folder / "old.bin").write_text("x")
    r.need("01_draw"); assert not (folder / "old.bin").exists()
    other = run(); other.dir = r.dir.parent / "home"; (other.dir / "01_draw").mkdir(parents=True); (other.dir / "01_draw" / "thesis.doc").write_text("x")
    with pytest.raises(FileExistsError, match="thesis.doc"): other.need("01_draw")
    assert (other.dir / "01_draw" / "thesis.doc").exists()


@pytest.fixture
def models(monkeypatch, tmp_path):
    "A stage whose members are models: what was trained, and a function to run it."
    trained = []
    def build(run, folder, settings, inputs):
        for s in run.seeds:
            place = folder / "keepfit" / str(s)
            if (place / "whole").exists(): continue
            trained.append(s); place.mkdir(parents=True, exist_ok=True)
            if s == 9: (place / "half").write_text("x"); raise RuntimeError("killed")
            (place / "whole").write_text("x")
        (folder / "table.csv").write_text(str(run.seeds))
    members = lambda run, settings: {f"keepfit/{s}": str(settings.count) for s in run.seeds}
    table = {"01_models": p.Stage("01_models", build, settings=Draw, extra=lambda run, s: str(run.seeds), members=members)}
    monkeypatch.setattr(p, "find_stage", lambda name: table[name])
    def go(*seeds, **sections): return p.Run("x", p.Profile(name="t", seeds=list(seeds), sections=sections), tmp_path / "run").need("01_models")
    return go, trained


def test_one_more_seed_leaves_the_other_members(models):
    go, trained = models
    folder = go(0, 1); assert trained == [0, 1]
    (folder / "keepfit" / "notes.txt").write_text("of nobody")
    go(0, 1, 2); assert trained == [0, 1, 2]
    assert (folder / "table.csv").read_text() == "[0, 1, 2]" and not (folder / "keepfit" / "notes.txt").exists()
    go(2); assert trained == [0, 1, 2] and [f.name for f in (folder / "keepfit").iterdir()] == ["2"]


def test_members_go_with_what_they_depend_on(models, monkeypatch):
    go, trained = models
    go(0, 1); go(0, 1, draw={"count": 5}); assert trained == [0, 1]                        # another section
    go(0, 1, models={"count": 5}); assert trained == [0, 1] * 2
    monkeypatch.setattr(p, "source_fingerprint", lambda *args: "other")
    go(0, 1, 2, models={"count": 5}); assert trained == [0, 1] * 2 + [0, 1, 2]


def test_a_member_that_was_killed_goes_on_after_a_seed_is_added(models):
    go, trained = models
    with pytest.raises(RuntimeError, match="killed"): go(0, 9)
    with pytest.raises(RuntimeError, match="killed"): go(0, 9, 4)
    folder = go(0, 4); assert trained == [0, 9, 9, 4] and not (folder / "keepfit" / "9").exists()


def test_a_link_in_a_stage_folder_is_unlinked_not_followed(models, tmp_path):
    go, _ = models; home = tmp_path / "home"; home.mkdir(); (home / "thesis.doc").write_text("x")
    folder = go(0); (folder / "keepfit" / "link").symlink_to(home); go(0, 1)
    assert (home / "thesis.doc").exists() and not (folder / "keepfit" / "link").exists()


def test_failure_is_written_down(chain):
    run, _, table = chain
    def fails(*a): raise KeyError("pupil")
    table["01_draw"] = p.Stage("01_draw", fails)
    with pytest.raises(KeyError): run().need("02_double")
    left = p.read_json(run().folder("01_draw") / "manifest.json")
    assert left["status"] == "failed" and "pupil" in left["error"]


def test_disk_full_keeps_the_old_file_and_says_so(tmp_path, monkeypatch):
    p.write_json(tmp_path / "a.json", 1)
    def full(self, *a, **k): self.touch(); raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="Free some space"): p.write_json(tmp_path / "a.json", 2)
    monkeypatch.undo()
    assert p.read_json(tmp_path / "a.json") == 1 and [f.name for f in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match="Make the folder nowhere"): p.write_json(tmp_path / "nowhere" / "a.json", 2)


def test_metrics_take_numbers_only(tmp_path):
    import numpy as np
    p.merge_metrics(tmp_path, {"a": np.float32(.5)}); p.merge_metrics(tmp_path, {"b": 2})
    assert p.read_json(tmp_path / "metrics.json") == {"a": .5, "b": 2}
    with pytest.raises(TypeError, match="curve"): p.merge_metrics(tmp_path, {"curve": [1, 2]})


def test_run_dir_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"): p.open_run("00_profiles", run_dir=tmp_path / "f")


def test_devices_and_missing_gpu(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert p.pick_device("cpu").type == "cpu"
    with pytest.raises(RuntimeError, match="this machine has none"): p.pick_device("cuda")
    with pytest.raises(ValueError, match="unknown device"): p.pick_device("tpu")


def test_manifest_holds_no_absolute_path(chain):
    run, _, _ = chain
    assert str(run().dir) not in (run().need("02_double") / "manifest.json").read_text()


def test_fingerprint_follows_imports(monkeypatch):
    sources = {"a": "from .b import f\ndef g(): return f()", "b": "def f(): return 1"}
    monkeypatch.setattr(p, "_module_source", lambda name: sources.get(name, ""))
    before = p.source_fingerprint("a"); sources["b"] = "def f(): return 2"
    assert p.source_fingerprint("a") != before
    sources["b"] = "def f():   # back\n    return 1"; assert p.source_fingerprint("a") == before


def test_fingerprint_of_a_notebook_in_the_middle(monkeypatch):
    "Cells not run yet count as the file has them; a cell that says something else counts as it stands, and the last time it was run."
    source = "def g(): return 1\ndef h(): return 2\nclass A: pass\nclass B: pass\ndef size(self: A): return 1\ndef size(self: B): return 2\nA.size, B.size = size, size"
    monkeypatch.setattr(p, "_module_source", lambda name: source if name == "a" else "")
    whole, cells = p.source_fingerprint("a"), source.splitlines()
    for n in range(len(cells) + 1): assert p.source_fingerprint("a", cells[:n]) == whole
    assert p.source_fingerprint("a", ["def g(): return 3"]) != whole and p.source_fingerprint("a", ["def size(self: B): return 3"]) != whole
    assert p.source_fingerprint("a", ["def g(): return 3", "def g():  # as it was\n    return 1"]) == whole
    assert p.source_fingerprint("a", ["def new(): pass"]) != whole
