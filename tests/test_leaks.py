"Chapter 02a beyond what the notebook shows: hashes at scale, awkward sets, words in two languages, the published leak."
import io, os

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageEnhance

from keepfit_nb import leaks as L
from keepfit_nb.knowledge import family, load_knowledge
from keepfit_nb.leaks import find_leaks, look, looks, names_category, near_pairs, show_pairs, word_leaks
from keepfit_nb.pictures import open_image
from keepfit_nb.records import image_id, leak_report, validate


@pytest.fixture(autouse=True)
def local_salt(tmp_path_factory, monkeypatch): monkeypatch.setenv("KEEPFIT_DATA", str(tmp_path_factory.getbasetemp() / "keepfit_data"))


def texture(seed, size=128):
    "A disc of smooth noise with fine structure: no two seeds alike."
    rng = np.random.default_rng(seed); y, x = np.mgrid[:size, :size] - size / 2
    layer = lambda n, s: np.asarray(Image.fromarray(rng.normal(0, s, (n, n)).astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
    a = np.where(x * x + y * y < (size * .47)**2, 120 + layer(10, 25) + layer(32, 25), 0)
    return Image.fromarray(np.clip(np.stack([a, a * .5, a * .3], -1), 0, 255).astype(np.uint8))

def jpeg(img, quality): b = io.BytesIO(); img.save(b, "JPEG", quality=quality); return Image.open(b).convert("RGB")
half = lambda i: i.resize((i.width // 2, i.height // 2))
FLIP = Image.Transpose
COPIES = {"half": half, "large": lambda i: i.resize((300, 300)), "jpeg": lambda i: jpeg(i, 50), "mirrored": lambda i: i.transpose(FLIP.FLIP_LEFT_RIGHT),
          "flipped": lambda i: i.transpose(FLIP.FLIP_TOP_BOTTOM), "turned": lambda i: i.transpose(FLIP.ROTATE_180), "darker": lambda i: ImageEnhance.Brightness(i).enhance(.8),
          "grey": lambda i: i.convert("L"), "mirrored half jpeg": lambda i: jpeg(half(i).transpose(FLIP.FLIP_LEFT_RIGHT), 50)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    base = tmp_path_factory.mktemp("pairs"); os.environ.setdefault("KEEPFIT_DATA", str(base))
    for i in range(40): texture(i).save(base / f"{i}.png")
    names = [f"{i} {k}.png" for i, k in enumerate(COPIES)]
    for i, (k, f) in enumerate(COPIES.items()): f(texture(i)).save(base / names[i])
    rows = lambda ns: validate([dict(image=n, modality="CFP") for n in ns], base)[0]
    return rows([f"{i}.png" for i in range(30)]), rows(names + [f"{i}.png" for i in range(30, 40)])


def test_every_kind_of_copy_is_found_with_its_partner_and_nothing_else(sets):
    train, test = sets; found = find_leaks(train, test)
    assert found.kind.eq("near copy").all() and found.test_row.tolist() == found.train_row.tolist() == list(range(len(COPIES)))
    said = dict(zip(COPIES, found.detail)); assert said["mirrored"].startswith("mirrored") and said["turned"].startswith("turned by 180°") and said["half"].startswith("agreement")


def test_same_pixels_in_another_file_and_unreadable_files(sets, tmp_path):
    train, _ = sets; Image.open(train[3]["image"]).save(tmp_path / "again.tif"); (tmp_path / "broken.png").write_bytes(b"x"); Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    test = validate([dict(image=n, modality="CFP") for n in ("again.tif", "broken.png", "black.png")], tmp_path, check_images=False)[0]
    found = find_leaks(train, test); assert found.values.tolist() == [["same pixels", 0, 3, ""]]
    assert not len(find_leaks(test.select([1, 2]), test.select([1]))[lambda t: t.kind.isin(["same pixels", "near copy"])])


def test_empty_sides_and_no_pictures_asked(sets):
    train, test = sets
    for a, b in ((train.select([]), test), (train, test.select([])), (train.select([]), test.select([]))): assert find_leaks(a, b).empty
    assert find_leaks(train, test, near=False).empty and list(find_leaks(train, test, near=False)) == ["kind", "test_row", "train_row", "detail"]


def test_pairs_are_drawn_even_when_a_file_has_gone(sets, tmp_path):
    train, test = sets; found = find_leaks(train, test)
    fig = show_pairs(found, train, test, n=3); assert len(fig.axes) == 6
    gone = validate([dict(image=str(tmp_path / "gone.png"), modality="CFP")], check_images=False)[0]
    assert show_pairs(pd.DataFrame([("same patient", 0, 0, "")], columns=list(found)), gone, gone) and show_pairs(found.iloc[:0], train, test)


def flipped(hashes, rng, bits):
    out = hashes.copy()
    for h in out:
        for b in rng.choice(256, bits, replace=False): h[b // 64] ^= np.uint64(1) << np.uint64(b % 64)
    return out


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(0, 15))
def test_bands_find_every_copy_with_fewer_than_sixteen_differences(seed, bits):
    rng = np.random.default_rng(seed); a = rng.integers(0, 2**63, (300, 4), dtype=np.uint64); b = np.concatenate([flipped(a[:50], rng, bits), rng.integers(0, 2**63, (50, 4), dtype=np.uint64)])
    left, right = L._bands(a), L._bands(b); met = {(r, c) for k in range(16) for rows, cols in L._meet(left[:, k], right[:, k], most=7) for r, c in zip(rows.tolist(), cols.tolist())}
    assert {(i, i) for i in range(50)} <= met and near_pairs(a, b, 15).tolist() == [[i, i] for i in range(50)]


def test_both_searches_agree(monkeypatch):
    rng = np.random.default_rng(0); a = rng.integers(0, 2**63, (2000, 4), dtype=np.uint64); a[5] = a[9]; b = flipped(a[:200], rng, 12)
    slow = L._near_all(a, b, 15); monkeypatch.setattr(L, "_near_all", None)
    big = np.concatenate([a, rng.integers(0, 2**63, (200_000, 4), dtype=np.uint64)]); more = np.concatenate([b, rng.integers(0, 2**63, (2000, 4), dtype=np.uint64)])
    assert near_pairs(big, more, 15).tolist() == slow.tolist()


def test_words_in_both_languages_and_their_families():
    for c in load_knowledge().values():
        for text in (c.name, f"Seen: {c.name.upper()}" if len(c.name) > 5 else c.name, c.name_zh, *c.synonyms, *c.synonyms_zh): assert names_category(text, [c.name]), text
        for below in family(c.name): assert names_category(f"with {below}.", [c.name]) == c.name
    for text in ("terminal", "the determined course", "mho MHz", "cataractous-like?", "RPE", "armd"):
        assert not names_category(text, ["epiretinal membrane", "macular hole", "retinitis pigmentosa"]), text
    assert names_category("macular-hole", ["macular hole"]) and names_category("Macular  holes", ["macular hole"]) and names_category("martian eyes", ["Martian eye"])


def test_word_leaks_name_row_and_category():
    rows = [dict(image="a.png", modality="CFP", caption="Drusen."), dict(image="b.png", modality="CFP", caption="A cataract dims the view."), dict(image="c.png", modality="CFP", caption_zh="右眼白内障"),
            dict(image="d.png", modality="CFP", categories=["macular hole"])]
    train = validate(rows, check_images=False)[0]; found = word_leaks(train, ["cataract", "macular hole"])
    assert found.values.tolist() == [["unseen category named in a caption", -1, 1, "cataract"], ["unseen category named in a caption", -1, 2, "cataract"], ["unseen category as a label", -1, 3, "macular hole"]]
    assert word_leaks(train, []).empty


def test_image_ids_survive_renamed_folders():
    rows = lambda paths, **kw: validate([dict(image=p, modality="CFP", **kw) for p in paths], check_images=False)[0]
    a, b = rows(["08_ODIR-5K/train_resized/2_right.jpg", "x/3_left.jpg"]), rows(["08_ODIR-5K/preprocessed_images/2_right.png", "y/3_left.jpg"])
    assert image_id(a).to_pylist() == ["08_ODIR-5K\t2_right", "x\t3_left"]
    assert leak_report(a, b, names=True).values.tolist() == [["same file name", 0, 0]]
    assert len(leak_report(rows(["p/1.jpg"], source="s"), rows(["q/1.jpeg"], source="s"), names=True)) == 1


@pytest.mark.real
def test_the_112_published_rows_are_found_by_image_id(real):
    read = lambda f: validate(pd.read_csv(real / "tables" / f).assign(modality="CFP").drop(columns=["atributes"]), check_images=False, max_quarantined=.5)[0]
    found = leak_report(read("pretraining_08_ODIR.csv"), test := read("08_ODIR200x3.csv"), names=True)
    raw = pd.read_csv(real / "tables" / "08_ODIR200x3.csv"); stems = set(pd.read_csv(real / "tables" / "pretraining_08_ODIR.csv").image.str.extract(r"([^/]+)\.\w+$")[0])
    assert raw.image.str.extract(r"([^/]+)\.\w+$")[0].isin(stems).sum() == 112                # rows as published, duplicates counted
    ids = {test[int(i)]["image"] for i in found.test_row}
    assert raw.image.isin(ids).sum() == 112 and all(test[int(i)]["categories"] == ["normal"] for i in found.test_row)


@pytest.mark.real
@pytest.mark.slow
def test_detection_and_false_alarms_on_real_images(real, tmp_path):
    rows = pd.read_csv(real / "records.csv", keep_default_na=False); rows = rows.iloc[np.random.default_rng(1).permutation(len(rows))[:700]].reset_index(drop=True)
    seen = looks([real / p for p in rows.path]); a = np.stack([l.bits[0] for l in seen])
    copy = lambda l, m: any((d := np.bitwise_count(l.bits[0] ^ m.bits[k]).sum()) <= L.BITS and L.is_copy(d, L.agreement(l.detail, L._flipped(m.detail, k))) for k in range(4))
    hits = []
    for i in range(0, 700, 10):
        for name in ("half", "jpeg", "mirrored", "flipped", "mirrored half jpeg"):
            COPIES[name](open_image(real / rows.path[i]).convert("RGB")).save(tmp_path / "x.png"); hits.append(copy(seen[i], look(tmp_path / "x.png")))
    assert np.mean(hits) >= .99
    wrong = {(i, j) for k in range(4) for j, i in near_pairs(a, np.stack([l.bits[k] for l in seen]), L.BITS).tolist() if i < j and rows.patient[i] != rows.patient[j]
             and rows.modality[i] == "CFP" and L.is_copy(np.bitwise_count(a[i] ^ seen[j].bits[k]).sum(), g := L.agreement(seen[i].detail, L._flipped(seen[j].detail, k))) and g < .98}
    assert len(wrong) <= 1e-5 * 700 * 699 / 2 + 1
