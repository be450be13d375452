"Names, facts, their rules, company and prevalence."
import itertools

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from keepfit_nb.catalogue import (DISEASES, FINE_TASKS, GRADES, PER_10000, PREVALENCES, TOGETHER, as_diseases, consistent, draw_facts, partners, possible,
                                  prevalence, read_table, seen_facts)
from keepfit_nb.knowledge import load_knowledge

ALL = [(d.name, f, v) for d in DISEASES.values() for f, values in d.facts.items() for v in values]


def test_counts_of_the_simulator():
    seen = {m: sum(m in d.modalities for d in DISEASES.values()) for m in ("CFP", "FFA", "OCT")}
    assert seen == {"CFP": 29, "FFA": 17, "OCT": 15} and len(DISEASES) == 31
    assert len(FINE_TASKS) == len(set(FINE_TASKS))
    for m, d, f in FINE_TASKS: assert m in DISEASES[d].modalities and len(DISEASES[d].facts[f]) >= 2


def test_every_fact_is_seen_by_a_camera_that_sees_its_disease():
    for d in DISEASES.values():
        for f, values in d.facts.items(): assert d.seen[f] and set(d.seen[f]) <= set(d.modalities) and len(set(values)) == len(values) > 1


def test_names_are_those_of_the_knowledge():
    known = set(load_knowledge())
    assert set(DISEASES) - {"asteroid hyalosis"} <= known


def test_table_is_read_as_it_is_written():
    (d,) = read_table("some disease | CFP OCT | a fact=x/y (CFP); b=1/2/3 (CFP OCT)").values()
    assert d.facts == {"a fact": ("x", "y"), "b": ("1", "2", "3")} and d.seen == {"a fact": ("CFP",), "b": ("CFP", "OCT")} and d.modalities == ("CFP", "OCT")


def test_pairs_have_disjoint_facts_and_are_possible():
    assert len({frozenset(p) for p in TOGETHER}) == len(TOGETHER)
    for a, b in TOGETHER:
        assert a != b and not set(DISEASES[a].facts) & set(DISEASES[b].facts)
        assert possible((a, b)) and b in partners(a) and a in partners(b)


@pytest.mark.parametrize("disease, fact, value", ALL)
def test_every_value_is_possible(disease, fact, value):
    for i in range(3):
        facts = draw_facts(np.random.default_rng(i), disease, {fact: value})
        assert facts[fact] == value and set(facts) == set(DISEASES[disease].facts) and consistent(facts)


def test_grades_follow_the_scale():
    sets = possible(("diabetic retinopathy",))
    assert set(sets) == set(GRADES)
    for facts in sets["mild"]: assert all(facts[f] == "absent" for f in ("hard exudates", "cotton-wool spots", "venous beading", "non-perfusion"))
    assert all(f["venous beading"] == "absent" for f in sets["moderate"]) and any(f["venous beading"] == "present" for f in sets["severe"])
    drawn = [draw_facts(np.random.default_rng(i), "diabetic retinopathy", {})["grade"] for i in range(400)]
    assert all(70 < drawn.count(g) < 130 for g in GRADES)


def test_possible_is_what_brute_force_finds():
    names = ("diabetic retinopathy", "vitreous hemorrhage"); table = {f: v for n in names for f, v in DISEASES[n].facts.items()}
    brute = [f for f in (dict(zip(table, v)) for v in itertools.product(*table.values())) if consistent(f)]
    listed = [f for sets in possible(names).values() for f in sets]
    assert len(brute) == len(listed) and all(f in listed for f in brute) and {f["grade"] for f in brute} == {"proliferative"}


def test_drawn_facts_may_be_changed_without_harm():
    draw_facts(np.random.default_rng(0), "glaucoma", {})["cup"] = "spoilt"
    assert all(draw_facts(np.random.default_rng(i), "glaucoma", {})["cup"] != "spoilt" for i in range(5))


def test_hole_and_stage_agree():
    for i in range(60):
        f = draw_facts(np.random.default_rng(i), "macular hole", {})
        assert (f["stage"] == "2") == (f["hole"] == "small")


@pytest.mark.parametrize("call, says", [
    (lambda r: draw_facts(r, "glaucoms", {}), "did you mean 'glaucoma'"), (lambda r: draw_facts(r, "glaucoma", {"cupp": "large"}), "did you mean 'cup'"),
    (lambda r: draw_facts(r, "glaucoma", {"cup": "larg"}), "did you mean 'large'"), (lambda r: draw_facts(r, "normal", {"cup": "large"}), "unknown fact"),
    (lambda r: draw_facts(r, "diabetic retinopathy", {"grade": "mild", "hard exudates": "present"}), "no eye can have"),
    (lambda r: draw_facts(r, ("diabetic retinopathy", "vitreous hemorrhage"), {"grade": "mild"}), "no eye can have"),
    (lambda r: as_diseases(()), "no disease given"), (lambda r: as_diseases(("normal", "glaucoma")), "with 'normal' may come: nothing"),
    (lambda r: as_diseases(("glaucoma", "glaucoma")), "do not share an eye"), (lambda r: as_diseases(("glaucoma", 7)), "7"),
    (lambda r: prevalence("blanced", "CFP"), "did you mean 'balanced'"), (lambda r: prevalence("balanced", "CPF"), "did you mean 'CFP'")])
def test_wrong_names(call, says):
    with pytest.raises(ValueError, match=says): call(np.random.default_rng(0))


@pytest.mark.parametrize("modality", ["CFP", "FFA", "OCT"])
@pytest.mark.parametrize("kind", PREVALENCES)
def test_prevalence(kind, modality):
    w = prevalence(kind, modality); values = list(w.values())
    assert set(w) == {d.name for d in DISEASES.values() if modality in d.modalities} and abs(sum(values) - 1) < 1e-12 and min(values) > 0
    assert values == sorted(values, reverse=True) and set(PER_10000) == set(DISEASES)
    assert {"balanced": max(values) / min(values) < 1.0001, "long-tailed": abs(max(values) / min(values) - 100) < 1e-6, "rare": w["normal"] > .5}[kind]


def test_seen_facts():
    assert seen_facts(("macular hole",), "CFP") == ["hole"] and seen_facts(("normal",), "CFP") == []
    assert seen_facts(("diabetic retinopathy", "cataract"), "FFA") == ["microaneurysms", "non-perfusion"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(DISEASES)), min_size=1, max_size=4, unique=True), st.integers(0, 10**6))
def test_any_company_is_drawn_or_refused(names, seed):
    friends = all(b in partners(a) for a, b in itertools.combinations(names, 2))
    if not friends:
        with pytest.raises(ValueError, match="do not share"): as_diseases(names)
    elif possible(tuple(names)): assert consistent(draw_facts(np.random.default_rng(seed), names, {}))
