"Chapter 05.2 beyond its notebook: every fact has a source, every class a name, and a wrong file says where."
import json, re

import pytest, yaml

from keepfit_nb import registry as R
from keepfit_nb.knowledge import canonical, load_knowledge
from keepfit_nb.layouts import READS
from keepfit_nb.profiles import resource

SOURCES = list(R.load_registry().values())


def test_the_registry_is_complete():
    assert len(SOURCES) >= 60 and len({s.name for s in SOURCES}) == len(SOURCES)
    assert sorted(s.part for s in SOURCES if s.part.startswith("FLAIR")) == [f"FLAIR {i:02}" for i in range(1, 38)]
    names = {s.name for s in SOURCES}
    assert names >= {"SynFundus-1M", "DeepEyeNet", "FFA-IR", "MPOS", "Angiographic", "OCTID", "OCTDL", "OCT2017", "MM-Retinal V1 CFP", "MM-Retinal V1 FFA",
                     "MM-Retinal V1 OCT", "MM-Retinal V2", "MM-Retinal-Text", "RetinalOCT-C8", "OCTA-500", "glaucoma_detection", "STAGE1", "STAGE2", "GAMMA",
                     "OIMHS", "Duke DME", "GOALS", "BIOMISA", "ODIR200x3", "AMD (iChallenge)", "TAOP", "MMAC 2023"}


def test_every_fact_has_a_source_and_a_date():
    found = R.registry_json()
    for s in found["sources"]:
        for f in ("size", "licence", "access", "address", "citation"):
            assert s[f] == "unknown" or (s[f]["value"] not in ("", "unknown") and s[f]["by"] in found["refs"]), (s["name"], f)
    for name, ref in found["refs"].items(): assert re.fullmatch(r"20\d\d-\d\d-\d\d", ref["date"]) and ref["title"], name
    used = {v["by"] for s in found["sources"] for v in s.values() if isinstance(v, dict) and "by" in v} | {f["by"] for s in found["sources"] for f in s["files"]}
    assert set(found["refs"]) == used | ({"ours"} & set(found["refs"])), set(found["refs"]) - used


def test_every_class_is_a_category():
    for s in SOURCES:
        for theirs, ours in s.labels.items(): assert ours is None or ours in load_knowledge(), (s.name, theirs, ours)


def test_a_label_without_a_name_has_none_indeed():
    "When chapter 01 learns a name that a set uses word for word, the registry must point to it."
    late = [(s.name, t, canonical(t)) for s in SOURCES for t, o in s.labels.items() if o is None and canonical(t) in load_knowledge() and len(t) > 5]
    assert not late, late


def test_schema_beside_the_file():
    import jsonschema
    schema = json.loads(resource("data", "sources.schema.json").read_text())
    assert schema == R.Registry.model_json_schema(), "run keepfit_nb.registry.write_schema()"
    plain = R.read_registry(resource("data", "sources.yaml")).model_dump(mode="json")
    jsonschema.validate(plain, schema)
    plain["sources"][3]["role"] = ["judge"]
    with pytest.raises(jsonschema.ValidationError): jsonschema.validate(plain, schema)


def test_addresses_are_plain_links():
    for s in SOURCES:
        if s.address != "unknown": assert re.fullmatch(r"https?://[\w./~:%?=&-]+", s.fact("address")), s.name
        for f in s.files: assert s.fact("access") == "open", f"{s.name}: only an open set may be fetched by a program"


@pytest.mark.parametrize("change, told", [
    (dict(role=["judge"]), "Mine · role"), (dict(modality=["XRAY"]), "Mine · modality"), (dict(access=["free", "a"]), "Mine · access"),
    (dict(size=["many", "a"]), "Mine · size"), (dict(licence=["MIT", "nobody"]), "did you mean|unknown reference"), (dict(colour="red"), "Mine · colour"),
    (dict(classes=[{"G": "glaucomma"}, "a"]), "did you mean 'glaucoma'"), (dict(layout={"by": "a", "reader": "magic"}), "Mine · layout · reader")])
def test_a_wrong_registry_says_where(tmp_path, change, told):
    entry = {"name": "Mine", "modality": ["CFP"], "role": ["public"], "part": "public", **change}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"refs": {"a": {"title": "t", "date": "2026-01-01"}}, "sources": [entry]}))
    with pytest.raises(ValueError, match=told): R.read_registry(tmp_path / "r.yaml")


def test_listing():
    t = R.list_sources()
    assert t.name.is_unique and set(t.access) <= set(R.ACCESS) and set(t.reader) - {""} == set(READS) and len(R.list_sources("evaluation")) >= 12
    with pytest.raises(ValueError, match="evaluation"): R.list_sources("evalution")
    for s in SOURCES: assert R.ACCESS[s.fact("access")] in R.how_to_get(s)
