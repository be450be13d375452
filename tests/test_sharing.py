"Chapter 02b beyond what the notebook shows: exports opened by plain `datasets` in a process of its own, cards, a Hub on this machine."
import hashlib, io, json, os, re, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np, pydicom, pytest, yaml
from PIL import Image
from pydicom import uid

from keepfit_nb import sharing as S
from keepfit_nb.people import metadata_reasons
from keepfit_nb.records import COLUMNS, split_by_patient, validate
from keepfit_nb.sharing import card, caption_figure, category_figure, cooccurrence, export_parquet, overview_figure, plain_bytes, push_to_hub, save_to_disk, statistics, verdicts


@pytest.fixture(autouse=True)
def local_salt(tmp_path_factory, monkeypatch): monkeypatch.setenv("KEEPFIT_DATA", str(tmp_path_factory.getbasetemp() / "keepfit_data"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    "Sixty pictures of several formats, thirty patients, three splits."
    base, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0); os.environ.setdefault("KEEPFIT_DATA", str(base))
    rows = []
    for i in range(60):
        name = f"{i}.{('jpg', 'png', 'tif', 'dcm')[i % 4]}"; a = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
        if name.endswith("dcm"):
            ds = pydicom.Dataset(); ds.file_meta = pydicom.dataset.FileMetaDataset(); ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            ds.SOPClassUID, ds.SOPInstanceUID, ds.Rows, ds.Columns = uid.OphthalmicTomographyImageStorage, uid.generate_uid(), 32, 40
            ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, "MONOCHROME2", 0, 8, 8, 7
            ds.PixelData = a[..., 0].tobytes(); ds.save_as(base / name, enforce_file_format=True)
        else: Image.fromarray(a).save(base / name)
        rows.append(dict(image=name, modality=("CFP", "CFP", "FFA", "OCT")[i % 4], categories=["drusen", "cataract"][:1 + i % 2], patient=str(i // 2), caption="Soft drusen." if i % 3 else "",
                         caption_zh="玻璃膜疣" if i % 5 == 0 else "", source=f"set {i % 2}", licence="CC-BY-4.0", attributes=["side: left"]))
    return split_by_patient(validate(rows, base)[0], {"train": .6, "val": .2, "test": .2})


PLAIN = """import sys, json, datasets, numpy as np, hashlib
assert not any(m.startswith('keepfit') for m in sys.modules)
kind, folder, cache = sys.argv[1:4]
ds = datasets.load_dataset(folder, cache_dir=cache) if kind == 'load_dataset' else datasets.load_from_disk(folder)
assert 'keepfit_nb' not in sys.modules
out = {s: [dict({k: v for k, v in r.items() if k != 'image'}, image=hashlib.sha256(np.asarray(r['image']).tobytes()).hexdigest()) for r in part] for s, part in ds.items()}
print(json.dumps(dict(rows=out, image=str(next(iter(ds.values())).features['image']))))"""

def opened_plainly(kind, folder, tmp_path):
    "What plain `datasets` sees, in a process that never imports this package."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PLAIN, kind, str(folder), str(tmp_path / "cache")], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind, export", [("load_dataset", export_parquet), ("load_from_disk", save_to_disk)])
def test_plain_datasets_opens_what_we_export(records, tmp_path, kind, export):
    seen = opened_plainly(kind, export(records, tmp_path / "set"), tmp_path)
    assert seen["image"].startswith("Image(") and list(seen["rows"]) == ["train", "validation", "test"]
    for ours, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = [r for r in records if r["split"] == ours]; got = seen["rows"][theirs]
        digest = lambda path: hashlib.sha256(np.asarray(S.open_image(path)).tobytes()).hexdigest()
        assert [{**r, "image": digest(r["image"])} for r in rows] == [{c: g[c] for c in COLUMNS} for g in got]


def test_export_with_card_and_several_shards(records, tmp_path, monkeypatch):
    monkeypatch.setattr(S, "SHARD_BYTES", 40_000); monkeypatch.setattr(S, "PIECE", 7)
    out = export_parquet(records, tmp_path / "set", card(records, "Toy", {}))
    assert len(list(out.glob("data/train-*-of-*.parquet"))) > 1
    assert sum(map(len, opened_plainly("load_dataset", out, tmp_path)["rows"].values())) == 60


def test_export_refuses_and_leaves_nothing_behind(records, tmp_path):
    (tmp_path / "full").mkdir(); (tmp_path / "full" / "x").write_text("mine")
    for f in (export_parquet, save_to_disk):
        with pytest.raises(FileExistsError, match="is not empty"): f(records, tmp_path / "full")
        with pytest.raises(ValueError, match="no records"): f(records.select([]), tmp_path / "none")
    broken = validate([dict(image=str(tmp_path / "gone.png"), modality="CFP")], check_images=False)[0]
    with pytest.raises((ValueError, OSError)): export_parquet(broken, tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"] and (tmp_path / "full" / "x").read_text() == "mine"
    (tmp_path / "empty").mkdir(); assert export_parquet(records, tmp_path / "empty") == tmp_path / "empty"


def test_records_without_a_split_are_all_train(records, tmp_path):
    bare = records.remove_columns("split").add_column("split", [""] * 60); out = export_parquet(bare, tmp_path / "set")
    assert [p.name for p in out.glob("data/*")] == ["train-00000-of-00001.parquet"]


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_exported_pictures_carry_no_words_and_keep_their_pixels(tmp_path, kind):
    from PIL.PngImagePlugin import PngInfo
    exif = Image.Exif(); exif[0x013B], exif[0x010E] = "somebody", "a secret place"; info = PngInfo(); info.add_text("Comment", "a secret place")
    img = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)); path = tmp_path / f"x.{kind}"
    img.save(path, exif=exif, **({"pnginfo": info} if kind == "png" else {"comment": b"a secret place"} if kind == "jpg" else {}))
    data = plain_bytes(path); (tmp_path / "bare").write_bytes(data)
    assert metadata_reasons(path) and not metadata_reasons(tmp_path / "bare") and b"secret" not in data and b"somebody" not in data
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(Image.open(path))).all()
    if kind in ("jpg", "png"): assert plain_bytes(tmp_path / "bare") == data and len(data) < path.stat().st_size      # copied, not coded again


def test_a_turned_jpeg_comes_out_upright(tmp_path):
    exif = Image.Exif(); exif[274] = 6; Image.new("RGB", (60, 40), "red").save(tmp_path / "x.jpg", exif=exif)
    assert Image.open(io.BytesIO(plain_bytes(tmp_path / "x.jpg"))).size == (40, 60)


def test_statistics_cooccurrence_and_figures(records):
    import matplotlib; matplotlib.use("agg")
    about = statistics(records); assert about["records"] == 60 and about["patients"] == 30 and about["modalities"] == {"CFP": 30, "FFA": 15, "OCT": 15} and about["categories"] == {"drusen": 60, "cataract": 30}
    assert about["captions"]["English, words"] == dict(n=40, mean=2.0, median=2, longest=2) and about["captions"]["Chinese, characters"]["n"] == 12
    names, both = cooccurrence(records); assert names == ["drusen", "cataract"] and both.tolist() == [[60, 30], [30, 30]]
    for f in (overview_figure, category_figure, caption_figure): assert f(records).axes
    bare = validate([dict(image="a.png", modality="CFP")], check_images=False)[0]
    assert statistics(bare)["categories"] == {} and all(f(bare) for f in (overview_figure, category_figure, caption_figure))


def test_verdicts_say_what_is_wrong(records):
    assert all(v.startswith("passed") for v in verdicts(records).values())
    wrong = records.to_dict(); wrong["split"] = ["train", "test"] * 30; wrong["licence"][0] = ""; wrong["caption"][1] = "Patient name: see chart"; wrong["image"][2] = "/nowhere/2.png"
    said = verdicts(type(records).from_dict(wrong, features=records.features))
    assert [k for k, v in said.items() if v.startswith("FAILED")] == ["personal data in words", "images open", "leaks between splits", "licences"]
    assert "30 × same patient" in said["leaks between splits"] and "chart" not in str(said)
    assert verdicts(records.filter(lambda r: r["split"] == "train"))["leaks between splits"].startswith("not run")


def test_card_has_a_header_the_hub_reads_and_every_section(records):
    text = card(records, "Toy | set", {"a check": "passed: all"}, "Made of noise."); head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "cc-by-4.0" and head["language"] == ["en", "zh"] and head["size_categories"] == ["n<1K"] and [f["split"] for f in head["configs"][0]["data_files"]] == ["train", "validation", "test"]
    assert all(f"## {s}\n" in text for s in ("Sources", "Counts", "Construction", "Checks", "Limits")) and "| set 0 | 30 | CC-BY-4.0 |" in text and "Made of noise." in text
    from huggingface_hub import DatasetCard
    assert DatasetCard(text).data.license == "cc-by-4.0"


class Hub(BaseHTTPRequestHandler):
    "As much of the Hub's protocol as an upload needs."
    def do_POST(self):
        body = b"".join(self._chunks()) if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuse: return self._say(403, {"error": "forbidden"})
        if self.path == "/api/repos/create": return self._say(200, {"url": f"http://127.0.0.1:{self.server.server_port}/datasets/me/toy", "name": "me/toy"})
        if "/preupload/" in self.path: return self._say(200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]})
        if self.path == "/api/validate-yaml": return self._say(200, {"errors": [], "warnings": []})
        if "/commit/" in self.path: return self._say(200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"http://127.0.0.1:{self.server.server_port}/datasets/me/toy/commit/{'0' * 40}", "hookOutput": ""})
        self._say(404, {"error": f"not found: {self.path}"})
    def do_GET(self):
        if self.server.refuse: self._say(403, {"error": "forbidden"})
        else: self._say(200, {"sha": "0" * 40, "id": "me/toy", "siblings": []})
    def _chunks(self):
        while n := int(self.rfile.readline(), 16): yield self.rfile.read(n); self.rfile.readline()
        self.rfile.readline()
    def _say(self, code, answer):
        data = json.dumps(answer).encode(); self.send_response(code); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(data))); self.end_headers(); self.wfile.write(data)
    def log_message(self, *args): pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub); server.asked, server.refuse = [], False
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")      # what HF_ENDPOINT sets
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_push_speaks_the_hubs_protocol(records, tmp_path, hub):
    out = export_parquet(records, tmp_path / "set", card(records, "Toy")); (out / "notes.txt").write_text("stays here")
    url = push_to_hub(out, "me/toy", token="hf_test", endpoint=f"http://127.0.0.1:{hub.server_port}")
    asked = {path.split("?")[0]: (auth, body) for path, auth, body in hub.asked}
    created = json.loads(asked["/api/repos/create"][1]); sent = asked["/api/datasets/me/toy/commit/main"][1].decode()
    assert url.endswith("/datasets/me/toy") and created["type"] == "dataset" and created.get("private", created.get("visibility")) in (True, "private") and asked["/api/repos/create"][0] == "Bearer hf_test"
    paths = set(re.findall(r'"path": ?"([^"]+)"', sent)); assert paths == {"README.md", *(f"data/{s}-00000-of-00001.parquet" for s in ("train", "validation", "test"))}


def test_push_refuses_before_it_asks_and_tells_what_the_hub_said(records, tmp_path, hub, monkeypatch):
    at = dict(endpoint=f"http://127.0.0.1:{hub.server_port}", token="hf_test")
    with pytest.raises(ValueError, match="holds no export"): push_to_hub(tmp_path, "me/toy", **at)
    with pytest.raises(ValueError, match="has no card"): push_to_hub(export_parquet(records, tmp_path / "bare"), "me/toy", **at)
    bad = export_parquet(records, tmp_path / "bad", card(records, "Toy", {"leaks": "FAILED: 3 × same patient", "other": "passed: yes"}))
    with pytest.raises(ValueError, match="not published: leaks: FAILED: 3 × same patient$"): push_to_hub(bad, "me/toy", **at)
    assert not hub.asked
    good, hub.refuse = export_parquet(records, tmp_path / "good", card(records, "Toy", {})), True
    with pytest.raises(ConnectionError, match=r"refused me/toy \(403\); log in"): push_to_hub(good, "me/toy", **at)
    import huggingface_hub.constants; monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"): push_to_hub(good, "me/toy", **at)
