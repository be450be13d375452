"Chapter 05.4 beyond its notebook: each set read from its miniature and recognised among all the others."
from collections import Counter
import hashlib

import pytest

from keepfit_nb import replicas as R
from keepfit_nb.knowledge import load_knowledge
from keepfit_nb.layouts import read_source
from keepfit_nb.registry import find_source, load_registry
from keepfit_nb.replicas import cloud

READABLE = [s.name for s in load_registry().values() if s.layout]


def picture(root, *paths):
    for p in paths:
        (root / p).parent.mkdir(parents=True, exist_ok=True); cloud(str(p)).save(root / p)


@pytest.mark.parametrize("name", READABLE)
def test_each_set_reads_its_replica_and_is_recognised(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KEEPFIT_DATA", str(tmp_path / "cache"))
    source, root = find_source(name), R.make_replica(name, tmp_path / "some downloads" / "archive(3)", 2)
    rows, notes = read_source(name, tmp_path / "some downloads")                       # folders above do not matter
    assert all((tmp_path / "some downloads" / p).is_file() for p in rows.image) and not notes["labels_not_listed"]
    labels = Counter(rows.categories.explode().dropna()) if "categories" in rows else Counter()
    assert set(labels) >= {o for o in source.labels.values() if o} and set(labels) <= set(load_knowledge())
    assert set(notes["labels_left_out"]) >= {t for t, o in source.labels.items() if o is None} - {"healthy", "disc", "fundus area"}
    if "elite" in source.role: assert (rows.caption != "").all()
    if len(source.modality) == 1: assert set(rows.modality) == set(source.modality)
    assert R.check_folder(root)["source"] == name


def test_replicas_share_no_picture(tmp_path):
    seen = Counter()
    for name in READABLE[:20]:
        root = R.make_replica(name, tmp_path / find_source(name).name.replace("/", "-"), 1)
        seen.update({hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.png")})
    assert max(seen.values()) == 1


def test_a_folder_that_is_no_set(tmp_path):
    picture(tmp_path / "a", "cats/1.png", "dogs/2.png")
    with pytest.raises(ValueError, match="looks like no set|nothing that looks"): R.check_folder(tmp_path / "a", "FIVES")
    with pytest.raises(ValueError, match="layout of BIOMISA is not known"): read_source("BIOMISA", tmp_path)
    with pytest.raises(ValueError, match="no table"): read_source("APTOS 2019", tmp_path / "a")
    with pytest.raises(FileNotFoundError): R.check_folder(tmp_path / "none")
