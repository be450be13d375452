"Chapter 14.3: declared tasks agree with the registry and the names of chapter 01; users declare their own; several labels."
import json

import pytest

from evaluation_bench import record

from keepfit_nb import tasks as T
from keepfit_nb.knowledge import load_knowledge
from keepfit_nb.profiles import resource
from keepfit_nb.registry import load_registry
from keepfit_nb.tasks import TaskSettings, all_tasks, left_out, load_tasks, read_tasks, select, select_multi, tasks_for


def rows_of(source, labels, modality="CFP", start=0):
    return [record(start + i, c, source, s, modality=modality) for i, (c, s) in enumerate((c, s) for c in labels for s in ("train", "test", "test"))]


def test_declared_tasks_agree_with_registry_and_names():
    known, names = load_registry(), load_knowledge()
    for t in load_tasks():
        source = known[t.set]; ours = set(source.labels.values())
        assert "evaluation" in source.role and t.modality in source.modality
        for c in t.specs:
            assert set(c.categories) <= set(names) and set(c.categories) <= ours, (t.name, c.name)
            assert not c.none or None in ours
    covered = {t.set for t in load_tasks()} | set(read_tasks(resource("data", "tasks.yaml")).undeclared)
    assert not [n for n, s in known.items() if s.part == "evaluation" and n not in covered]
    assert {"REFUGE", "FIVES", "ODIR200x3", "AMD (iChallenge)", "TAOP", "Messidor-2", "DeepDRiD", "ACRIMA", "MPOS", "Angiographic", "OCTID", "OCTDL"} <= covered


def test_schema_file_is_up_to_date(tmp_path):
    assert json.loads((resource("data") / "tasks.schema.json").read_text()) == json.loads(T.write_tasks_schema(tmp_path / "s.json").read_text())


def test_every_declared_class_has_words_of_its_own():
    from keepfit_nb.tasks import Task
    from keepfit_nb.zero_shot import task_sentences
    for t in load_tasks():
        task = Task(name=t.name, set=t.set, modality=t.modality, kind="coarse", classes=t.specs)
        for kind in ("plain", "ensemble"): assert all(task_sentences(task, kind))


def test_a_run_with_a_declared_set_uses_its_task():
    task, = all_tasks(rows_of("octid", ["normal", "CSC", "AMD", "macular hole", "DR"], "OCT"), TaskSettings())
    assert task.name == "OCTID diseases" and task.set == "octid" and task.names[1] == "central serous chorioretinopathy"
    part, = all_tasks(rows_of("FIVES", ["normal", "glaucoma"]), TaskSettings()); assert part.name == "FIVES diseases (2 of 4 classes)"
    assert all_tasks(rows_of("FIVES", ["cataract", "myopia"]), TaskSettings()) == []               # other labels are not this question


def test_grades_beside_another_label():
    rows = [record(i, [g, e], "Messidor-2", s) for i, (g, e, s) in enumerate((g, e, s) for g in ("no DR", "mild diabetic retinopathy", "severe diabetic retinopathy") for e in ("no DME", "DME") for s in ("train", "test"))]
    grades, edema = all_tasks(rows, TaskSettings())
    assert grades.ordinal and grades.names == ["no diabetic retinopathy", "mild diabetic retinopathy", "severe diabetic retinopathy"] and "3 of 5" in grades.name
    assert select(grades, rows)[1].tolist() == [0, 0, 1, 1, 2, 2] and select(edema, rows)[1].tolist() == [0, 1] * 3


def test_rows_without_a_category_can_be_the_other_class():
    rows = [record(i, c, "AMD (iChallenge)", s) for i, (c, s) in enumerate((c, s) for c in ([], ["AMD"]) for s in ("train", "test", "test"))]
    task, = all_tasks(rows, TaskSettings()); assert select(task, rows)[1].tolist() == [0, 0, 1, 1] and left_out(rows, [task]) == {}


def test_several_labels():
    rows = rows_of("clinic", ["normal", "glaucoma", "cataract"]) + [record(50, ["glaucoma", "cataract"], "clinic"), record(51, [], "clinic"), record(50, ["glaucoma", "cataract"], "clinic")]
    one, many = all_tasks(rows, TaskSettings()); assert not one.multi_label and many.multi_label and tasks_for(rows, TaskSettings()) == [one]
    r, Y = select_multi(many, rows); assert r.tolist()[-1] == 50 and len(r) == 7 and Y[-1].tolist() == [0, 1, 1] and Y.sum(0).tolist() == [2, 3, 3]
    assert left_out(rows, [one, many]) == {"clinic CFP: no category": 1}
    angio = rows_of("Angiographic", [["uveitis", "myopia"], ["normal"], ["myopia"]], "FFA")
    task, = all_tasks(angio, TaskSettings()); assert task.multi_label and "3 of 18" in task.name and tasks_for(angio, TaskSettings()) == []


def test_your_own_declarations(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("tasks: [{name: FIVES my way, set: FIVES, modality: CFP, classes: {well: {categories: [normal]}, ill: {categories: [glaucoma, AMD]}}}]")
    task, = all_tasks(rows_of("FIVES", ["normal", "glaucoma", "AMD"]), TaskSettings(tasks=str(mine)))
    assert task.name == "FIVES my way" and task.names == ["well", "ill"]
    with pytest.raises(FileNotFoundError, match="evaluation.tasks"): all_tasks(rows_of("a", ["normal"]), TaskSettings(tasks=str(tmp_path / "no.yaml")))


def test_shots_and_seed_travel_with_the_task(tmp_path):
    mine = tmp_path / "mine.yaml"; mine.write_text("tasks: [{name: few, set: FIVES, modality: CFP, classes: [normal, glaucoma], shots: [1, 3], seed: 7}]")
    task, = all_tasks(rows_of("FIVES", ["normal", "glaucoma"]), TaskSettings(tasks=str(mine)))
    assert task.shots == [1, 3] and task.seed == 7 and T.Task(**json.loads(task.model_dump_json())) == task
    plain, = all_tasks(rows_of("clinic", ["normal", "glaucoma"]), TaskSettings()); assert plain.shots is plain.seed is None


@pytest.mark.parametrize("task, words", [
    ("{name: a, set: s, modality: CFP, classes: [normal, DR], shots: []}", "shots"), ("{name: a, set: s, modality: CFP, classes: [normal, DR], shots: [0]}", "shots"),
    ("{name: a, set: s, modality: CFP, classes: [normal, DR], seed: -1}", "seed"),
    ("{name: a, set: s, modality: CFP, classes: [normal, glaucomma]}", "did you mean 'glaucoma'"), ("{name: a, set: s, modality: XYZ, classes: [normal, glaucoma]}", "a · modality"),
    ("{name: a, set: s, modality: CFP, classes: [normal, normal]}", "twice|two classes"), ("{name: a, set: s, modality: CFP, classes: [normal]}", "at least 2|two classes"),
    ("{name: a, set: s, modality: CFP, classes: [normal, healthy]}", "stands for two classes"), ("{name: a, set: s, modality: CFP, classes: [normal, DR], ordinl: true}", "ordinl"),
    ("{name: a, set: s, modality: CFP, classes: {normal: {prompts: [x]}, glaucoma: {prompts: [x]}}}", "same prompts"),
    ("{name: a, set: s, modality: CFP, classes: {normal: {prompts: [x]}, glaucoma: }}", "prompts to every class")])
def test_wrong_declarations_are_refused(tmp_path, task, words):
    path = tmp_path / "t.yaml"; path.write_text(f"tasks: [{task}]")
    with pytest.raises(ValueError, match=words): read_tasks(path)


def test_broken_files(tmp_path):
    path = tmp_path / "t.yaml"
    for text, words in (("tasks: [", "not valid YAML"), ("- a", "expected `tasks:`"), ("tasks: [3]", "t.yaml"),
                        ("tasks: [{name: a, set: s, modality: CFP, classes: [normal, DR]}, {name: a, set: t, modality: CFP, classes: [normal, DR]}]", "two tasks are called")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words): read_tasks(path)
