"Chapter 06 beyond its notebook: formats, broken files, the cache under kill and full disk, equal pixels everywhere."
import errno, io, os, subprocess, sys, time, zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from keepfit_nb import images as M
from keepfit_nb.decoding import batch_of, foreground_box
from keepfit_nb.profiles import real_folder


def disc(h=120, w=160, radius=50, seed=0):
    "A lit disc with texture on black."
    y, x = np.mgrid[:h, :w]
    inside = (y - h / 2) ** 2 + (x - w / 2) ** 2 < radius**2
    rng = np.random.default_rng(seed)
    return (inside[..., None] * (rng.integers(60, 120, (h, w, 3)) + [90, 30, 0])).astype(np.uint8)


def save(a, path, **kw):
    Image.fromarray(a).save(path, **kw)
    return path


# ---- decoding -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation(tmp_path, turn):
    back = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a)}
    a, tag = disc(40, 60), Image.Exif()
    tag[0x0112] = turn
    save(a, tmp_path / "t.png", exif=tag)
    assert np.array_equal(M.decode(tmp_path / "t.png"), back[turn](a))


def test_modes_agree():
    rgb = Image.fromarray(disc())
    want = M.decode(rgb)
    for mode in ("RGBA", "RGBX"): assert np.array_equal(M.decode(rgb.convert(mode)), want)
    grey = rgb.convert("L")
    g = np.dstack([np.asarray(grey)] * 3)
    for form in (grey, grey.convert("LA"), np.asarray(grey).astype(np.uint16) * 256,
                 Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), np.asarray(grey)[..., None], np.asarray(grey) / 255,
                 np.asarray(grey).astype(np.float32), np.asarray(grey).astype(np.int64), grey.convert("F")):
        assert np.array_equal(M.decode(form), g)
    assert np.array_equal(M.decode(grey.point(lambda v: 255 * (v > 99)).convert("1")), 255 * (g > 99))


def test_palette_with_transparency(tmp_path):
    im = Image.fromarray(disc()).quantize(64)
    im.save(tmp_path / "p.png", transparency=0)
    out = M.decode(tmp_path / "p.png")
    assert (out[np.asarray(im) == 0] == 0).all() and out.shape == (120, 160, 3)


def test_all_transparent_keeps_colours():
    a = np.dstack([disc(), np.zeros((120, 160), np.uint8)])
    assert np.array_equal(M.decode(a), disc())


def test_16_bit_files(tmp_path):
    a = (disc()[..., 0].astype(np.uint16) << 8) + 77
    for name in ("a.png", "a.tif"):
        Image.fromarray(a).save(tmp_path / name)
        assert np.array_equal(M.decode(tmp_path / name)[..., 0], disc()[..., 0])


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(disc()).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(M.decode(tmp_path / "c.jpg").astype(int) - disc()).mean() < 25      # chroma subsampling of noise


@pytest.mark.parametrize("form", [np.uint8, np.uint16, np.float32, np.float64, bool])
def test_callers_array_is_left_alone(form):
    a = (disc()[..., 0] > 99) if form is bool else (disc() / 255).astype(form) if np.issubdtype(form, np.floating) else disc().astype(form)
    before = a.copy()
    out = M.decode(a); out[:] = 7
    M.preprocess(a, 32)
    assert np.array_equal(a, before)
    a.flags.writeable = False
    M.preprocess(a, 32)


def test_path_bytes_picture_array_tensor_give_the_same_pixels(tmp_path):
    p = save(disc(), tmp_path / "x.jpg", quality=90)
    want = M.preprocess(p, 48)
    a = M.decode(p)
    for form in (str(p), p.read_bytes(), bytearray(p.read_bytes()), Image.open(p), a, a / 255, a.transpose(2, 0, 1),
                 torch.tensor(a), torch.tensor(a).permute(2, 0, 1), torch.tensor(a).permute(2, 0, 1).double() / 255):
        assert torch.equal(M.preprocess(form, 48), want), type(form)


@pytest.mark.parametrize("content, word", [
    (b"", "empty"), (b"Dear colleague,\n" * 99, "no picture"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "picture|damaged"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture"), (b"\xff\xd8\xff\xe0" + b"\0" * 30, "picture|damaged")])
def test_broken_files(tmp_path, content, word):
    p = tmp_path / "x.png"
    p.write_bytes(content)
    with pytest.raises(ValueError, match=word): M.decode(p)
    with pytest.raises(ValueError, match=word): M.decode(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_cut_files(tmp_path, kind):
    b = io.BytesIO(); Image.fromarray(disc()).save(b, kind)
    for share in (.1, .5, .9):
        with pytest.raises(ValueError): M.decode(b.getvalue()[:int(share * len(b.getvalue()))])


def test_random_damage_never_ends_in_another_error():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "TIFF"):
        b = io.BytesIO(); Image.fromarray(disc()).save(b, kind)
        for _ in range(40):
            a = np.frombuffer(b.getvalue(), np.uint8).copy()
            a[rng.integers(0, len(a), 8)] = rng.integers(0, 256, 8)
            try: out = M.decode(a.tobytes())
            except ValueError: continue
            assert out.dtype == np.uint8 and out.ndim == 3


def test_bomb_is_refused_before_unpacking(tmp_path):
    def chunk(tag, data): return len(data).to_bytes(4, "big") + tag + data + zlib.crc32(tag + data).to_bytes(4, "big")
    def png(side): return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]))
                           + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    for side in (9_100, 50_000):
        with pytest.raises(ValueError, match="pixels"): M.decode(png(side))


def test_wrong_things_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"): M.decode(tmp_path / "no.png")
    with pytest.raises(ValueError, match="folder"): M.decode(tmp_path)
    for a, word in ((np.full((9, 9), np.nan), "NaN"), (np.zeros((2, 9, 9, 3)), "batch"), (np.zeros(9), "shape"), (np.zeros((0, 9, 3)), "shape"),
                    (np.full((9, 9), 4000, np.int32), "values run"), (np.full((9, 9), -1.), "values run"), (np.array([["a"] * 9] * 9), "numbers"),
                    (np.zeros((9, 9, 7)), "shape"), (3.5, "float"), (None, "NoneType")):
        with pytest.raises(ValueError, match=word): M.decode(a)
    with pytest.raises(ValueError, match="size"): M.preprocess(disc(), 0)
    with pytest.raises(ValueError, match="size"): M.preprocess(disc(), "224")


# ---- crop and resize ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("noise", [0, 8, 20])
@pytest.mark.parametrize("size", [(120, 160), (600, 900), (1500, 1800)])
def test_crop_finds_the_disc(noise, size):
    h, w = size
    r = int(.4 * h)
    a = disc(h, w, r).astype(int)
    a = (a + np.random.default_rng(1).integers(0, noise + 1, a.shape)).clip(0, 255).astype(np.uint8)
    box = np.array(foreground_box(a))
    assert np.abs(box - [h / 2 - r, h / 2 + r, w / 2 - r, w / 2 + r]).max() <= .035 * h, box


def test_crop_of_what_has_no_border():
    rng = np.random.default_rng(0)
    for a in (np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
              np.zeros((1, 1, 3), np.uint8), np.zeros((3, 500, 3), np.uint8)):
        assert M.foreground_crop(a).shape == a.shape
    a = np.zeros((200, 200, 3), np.uint8); a[90:110, 90:110] = 255              # too small to be believed
    assert M.foreground_crop(a).shape == a.shape


def test_crop_keeps_scans_and_angiograms():
    from keepfit_nb.angiography import render_angiogram
    from keepfit_nb.eye import sample_eye
    from keepfit_nb.oct import render_oct
    for seed in range(12):
        cut = sample_eye(seed, disease=("normal", "macular hole", "geographic atrophy")[seed % 3])
        eye = sample_eye(seed, disease=("normal", "diabetic retinopathy", "central retinal vein occlusion")[seed % 3])
        for a in (render_oct(cut, 128), render_angiogram(eye, 128, "arterial"), render_angiogram(eye, 128, "late")):
            h, w = M.foreground_crop(a).shape[:2]
            assert min(h, w) > .8 * 128


@pytest.mark.parametrize("h, w", [(1, 1), (1, 999), (999, 1), (64, 64), (63, 65), (10, 640), (500, 300)])
def test_resize_pad_shapes(h, w):
    out = M.resize_pad(np.full((h, w, 3), 200, np.uint8), 64)
    assert out.shape == (64, 64, 3) and out.dtype == np.uint8 and out.max() == 200
    lit = (out[..., 0] > 0)
    assert lit.any(1).sum() == max(1, round(h * 64 / max(h, w))) and lit.any(0).sum() == max(1, round(w * 64 / max(h, w)))


def test_resize_averages():
    a = np.zeros((512, 512, 3), np.uint8); a[:, ::2] = 200                       # a comb finer than the target
    out = M.resize_pad(a, 64).astype(int)
    assert abs(out[8:-8, 8:-8] - 100).max() <= 3


def test_a_batch_is_the_pictures_in_their_own_order_of_memory(tmp_path):
    files = [save(disc(seed=i), tmp_path / f"{i}.png") for i in range(3)]
    pictures = [M.preprocess(f, 40) for f in files]
    batch = batch_of(pictures)
    assert torch.equal(batch, torch.stack(pictures)) and batch.is_contiguous(memory_format=torch.channels_last)
    plain = batch_of([p.contiguous() for p in pictures])
    assert torch.equal(plain, batch) and plain.is_contiguous()
    assert torch.equal(batch_of([pictures[0], pictures[1].contiguous()]), batch[:2])       # mixed
    with pytest.raises(ValueError, match="no picture"): batch_of([])


@pytest.mark.parametrize("shape", [(50, 50), (37, 90), (200, 64), (1, 9)])
def test_resizing_does_not_depend_on_the_order_of_memory(shape):
    a = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wide = np.zeros((*shape, 5), np.uint8); wide[..., :3] = a
    turned = np.asfortranarray(a); still = a.copy(); still.setflags(write=False)
    want = M.resize_pad(a, 48)
    for other in (wide[..., :3], turned, still): assert np.array_equal(M.resize_pad(other, 48), want)
    plain = torch.nn.functional.interpolate(torch.from_numpy(a).permute(2, 0, 1)[None].contiguous(), [max(1, round(n * 48 / max(shape))) for n in shape], mode="bilinear", antialias=True)[0]
    h, w = plain.shape[1:]; top, left = (48 - h) // 2, (48 - w) // 2
    assert np.array_equal(want[top:top + h, left:left + w], plain.permute(1, 2, 0).numpy())


# ---- cache ------------------------------------------------------------------------------------------------------------

def records(folder, n=6, **more):
    return [{"image": str(save(disc(seed=i), folder / f"i{i}.png")), "modality": "CFP", "source": "t", "categories": ["normal"], **more} for i in range(n)]


def stored(image, size, store):
    "What a cache is to hand back."
    pixels = M.preprocess(image, size)
    return pixels if store == "raw" else M.unpack(M.jpeg_bytes(pixels.numpy()))


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_cache_holds_what_preprocess_gives(tmp_path, store):
    rows = records(tmp_path)
    made = M.make_cache({"elite": rows[:2], "public": rows, "evaluation": rows[3:]}, tmp_path, M.Settings(size=32, workers=2, store=store))
    cache = M.ImageCache(tmp_path)
    assert made["images"] == 6 == len(cache) and made["public"] == 6 and cache.size == 32
    for r in cache.records("public"): assert torch.equal(cache.batch([r["row"]])[0], stored(r["image"], 32, store))
    assert [r["row"] for r in cache.records("evaluation")] == [3, 4, 5]
    b = cache.batch([2, 0]); b[:] = 9                                            # a copy: the file stays as it is
    assert torch.equal(cache.batch([0])[0], stored(rows[0]["image"], 32, store))


def test_cache_quarantines_without_naming_files(tmp_path):
    rows = records(tmp_path)
    for name, content in (("Jane_Doe_1950.png", b"text"), ("zero.png", b""), ("cut.jpg", b"\xff\xd8\xff\xe0abc")):
        (tmp_path / name).write_bytes(content)
        rows.append({"image": str(tmp_path / name), "source": "t"})
    rows.append({"image": str(tmp_path / "missing_Jane.png"), "source": "t"})
    made = M.make_cache({"elite": [], "public": rows, "evaluation": []}, tmp_path, M.Settings(size=32, max_quarantined=.5))
    assert made["images"] == 6 and made["quarantined_images"] == 4 and made["public"] == 6
    text = (tmp_path / "quarantine.csv").read_text()
    q = pd.read_csv(tmp_path / "quarantine.csv")
    assert list(q.row) == [6, 7, 8, 9] and "Jane" not in text and str(tmp_path) not in text
    assert q.reason[1].startswith("empty") and q.reason[3] == "file not found"
    with pytest.raises(ValueError, match="max_quarantined"):
        M.make_cache({"public": rows}, tmp_path, M.Settings(size=32))


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_full_disk_is_seen_before_the_work(tmp_path, monkeypatch, store):
    rows = records(tmp_path, 3)
    usage = M.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(M.shutil, "disk_usage", lambda p: usage._replace(free=1000))
    with pytest.raises(OSError, match="needs .* GB and .* left") as e:
        M.make_cache({"public": rows}, tmp_path, M.Settings(size=64, store=store))
    assert e.value.errno == errno.ENOSPC and not list(tmp_path.glob("images.???"))
    monkeypatch.undo()
    assert M.make_cache({"public": rows}, tmp_path, M.Settings(size=64, store=store))["images"] == 3


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_interrupted_cache_goes_on(tmp_path, monkeypatch, store):
    rows = records(tmp_path, 40)
    cache, calls, true, settings = tmp_path / "c", [], M.preprocess, M.Settings(size=32, workers=1, store=store)
    cache.mkdir()
    def slow(*args):
        calls.append(1)
        if len(calls) == 20: raise KeyboardInterrupt
        return true(*args)
    monkeypatch.setattr(M, "preprocess", slow)
    with pytest.raises(KeyboardInterrupt): M.make_cache({"public": rows}, cache, settings)
    assert not (cache / "images.npy").exists() and not (cache / "images.bin").exists()
    with pytest.raises(FileNotFoundError, match="06_images"): M.ImageCache(cache)
    done = np.load(cache / "done.npy").sum() if store == "raw" else (np.load(cache / "index.part.npy")[:, 1] > 0).sum()
    assert done >= 15
    calls.clear(); calls.extend([1] * 100)
    monkeypatch.setattr(M, "preprocess", lambda *a: (calls.append(1), true(*a))[1])
    M.make_cache({"public": rows}, cache, settings)
    assert len(calls) - 100 == 40 - done
    monkeypatch.undo()
    for r in M.ImageCache(cache).records("public"):
        assert torch.equal(M.ImageCache(cache).batch([r["row"]])[0], stored(r["image"], 32, store))


def test_killed_while_writing_jpegs(tmp_path):
    "SIGKILL in the middle; the second run makes what the first had not marked, and the result is the one of an undisturbed run."
    rows, calm, killed = records(tmp_path, 30), tmp_path / "calm", tmp_path / "killed"
    calm.mkdir(); killed.mkdir()
    M.make_cache({"public": rows}, calm, M.Settings(size=32, workers=1))
    code = f"""import os, signal
from keepfit_nb import images as M
true, n = M.JpegStore.put, [0]
def put(self, row, picture):
    true(self, row, picture); n[0] += 1
    if n[0] == 10: self.mark()
    if n[0] == 17: self.file.flush(); os.kill(os.getpid(), signal.SIGKILL)
M.JpegStore.put = put
M.make_cache({{"public": {rows!r}}}, {str(killed)!r}, M.Settings(size=32, workers=1))"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (np.load(killed / "index.part.npy")[:, 1] > 0).sum() == 10 and not (killed / "images.bin").exists()
    M.make_cache({"public": rows}, killed, M.Settings(size=32, workers=1))
    assert (killed / "images.bin").read_bytes() == (calm / "images.bin").read_bytes()
    assert np.array_equal(M.ImageCache(killed).images[:], M.ImageCache(calm).images[:])


def test_half_written_files_of_a_kill_are_started_afresh(tmp_path):
    rows = records(tmp_path, 3)
    (tmp_path / "images.part.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "done.npy").write_bytes(b"")
    assert M.make_cache({"public": rows}, tmp_path, M.Settings(size=32, store="raw"))["images"] == 3
    for name in ("images.bin", "index.npy", "index.part.npy", "images.part.bin"): (tmp_path / name).write_bytes(b"\x93NUMPY\x01")
    assert M.make_cache({"public": rows}, tmp_path, M.Settings(size=32))["images"] == 3


def test_a_change_of_store_or_size_leaves_one_cache(tmp_path):
    rows = records(tmp_path, 3)
    for settings in (M.Settings(size=32), M.Settings(size=32, store="raw"), M.Settings(size=48), M.Settings(size=48, quality=80), M.Settings(size=48, store="raw")):
        made = M.make_cache({"public": rows}, tmp_path, settings)
        cache = M.ImageCache(tmp_path)
        assert (cache.size, made["store"], cache.about["store"]) == (settings.size, settings.store, settings.store)
        assert len(list(tmp_path.glob("images.*"))) == 1 and not list(tmp_path.glob("*part*"))
        assert (cache.batch([2])[0].float() - M.preprocess(rows[2]["image"], settings.size)).abs().mean() < 6


def test_jpeg_cache_is_an_array_of_pictures(tmp_path):
    M.make_cache({"public": records(tmp_path, 6)}, tmp_path, M.Settings(size=32))
    cache = M.ImageCache(tmp_path); every = cache.images[:]
    assert every.shape == cache.images.shape == (6, 3, 32, 32) and every.dtype == np.uint8 == cache.images.dtype
    assert np.array_equal(cache.images[4], every[4]) and np.array_equal(cache.images[-1], every[5]) and np.array_equal(cache.images[[3, 1]], every[[3, 1]])
    assert np.array_equal(cache.batch(torch.tensor([5, 0, 5, 2, 1])).numpy(), every[[5, 0, 5, 2, 1]]) and cache.batch([]).shape == (0, 3, 32, 32)
    with pytest.raises(IndexError): cache.images[6]


def test_damaged_jpeg_cache_says_so(tmp_path):
    M.make_cache({"public": records(tmp_path, 3)}, tmp_path, M.Settings(size=32))
    data = (tmp_path / "images.bin").read_bytes()
    (tmp_path / "images.bin").write_bytes(data[:-10])
    with pytest.raises(ValueError, match="shorter"): M.ImageCache(tmp_path)
    (tmp_path / "images.bin").write_bytes(b"\0" * 40 + data[40:])
    with pytest.raises(ValueError, match="picture 0 of .* damaged"): M.ImageCache(tmp_path).batch([0])


def test_full_disk_while_writing_is_an_ordinary_error(tmp_path, monkeypatch):
    def full(self, *a): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(M.JpegStore, "put", full)
    with pytest.raises(OSError) as e: M.make_cache({"public": records(tmp_path, 3)}, tmp_path, M.Settings(size=32))
    assert e.value.errno == errno.ENOSPC and not (tmp_path / "images.bin").exists()


# ---- ahead of the step ----------------------------------------------------------------------------------------------

def test_prefetch_gives_the_same_batches(tmp_path):
    M.make_cache({"public": records(tmp_path, 12)}, tmp_path, M.Settings(size=32))
    cache = M.ImageCache(tmp_path)
    batches = lambda step: {"pixels": cache.batch(np.random.default_rng([3, step]).integers(0, 12, 8)), "step": step, "pair": [torch.tensor(step), (step,)]}
    with M.prefetch(batches, start=2, ahead=3) as feed:
        for step in (2, 3, 4, 9, 10, 3, 4): assert torch.equal(feed(step)["pixels"], batches(step)["pixels"]) and feed.step == step + 1      # jumps, as a resume makes them
    steps = [b["step"] for b in M.prefetch(batches, 4, stop=9)]
    assert steps == [4, 5, 6, 7, 8]
    assert isinstance(next(M.prefetch(batches, device="cpu"))["pair"][1], tuple)


def test_prefetch_works_ahead_but_not_further():
    asked = []
    with M.prefetch(lambda step: asked.append(step) or step, ahead=2) as feed:
        feed(0); time.sleep(.5)
        assert 3 <= len(asked) <= 4                     # one handed out, two waiting, at most one in the thread's hand
    time.sleep(.3); n = len(asked); time.sleep(.3)
    assert len(asked) == n and feed.waited >= 0 and 0 <= feed.wait_share <= 1
    with pytest.raises(RuntimeError, match="closed"): next(feed)
    with pytest.raises(ValueError, match="ahead"): M.prefetch(lambda s: s, ahead=0)


def test_prefetch_passes_errors_and_attributes_on():
    class Batches:
        steps_per_epoch = 7
        def __call__(self, step): return 1 // (2 - step)
    feed = M.prefetch(Batches())
    assert feed.steps_per_epoch == 7 and not hasattr(feed, "nothing")
    assert feed(0) == 0 and feed(1) == 1
    with pytest.raises(ZeroDivisionError): feed(2)
    assert feed(0) == 0                                  # and goes on where one asks it to
    feed.close(); feed.close()


def test_a_dropped_prefetcher_ends_its_thread():
    import gc, threading
    before = threading.active_count()
    feed = M.prefetch(lambda step: step); feed(0); del feed; gc.collect(); time.sleep(.5)
    assert threading.active_count() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reads_batches(tmp_path):
    M.make_cache({"public": records(tmp_path, 8)}, tmp_path, M.Settings(size=32))
    code = (f"import os\nfrom keepfit_nb.images import ImageCache\nc = ImageCache({str(tmp_path)!r}); a = c.batch(range(8))\n"
            "pid = os.fork()\nif not pid: os._exit(0 if (c.batch(range(8)) == a).all() else 3)\nassert os.waitpid(pid, 0)[1] == 0")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_cache_opens_without_parquet_or_opencv(tmp_path):
    M.make_cache({"elite": [], "public": records(tmp_path, 2), "evaluation": []}, tmp_path, M.Settings(size=32))
    code = ("import sys\nfor m in ('cv2', 'pyarrow', 'datasets', 'pandas'): sys.modules[m] = None\n"
            f"from keepfit_nb.images import ImageCache, Augment, preprocess\nc = ImageCache({str(tmp_path)!r})\n"
            "x = Augment()(c.batch([r['row'] for r in c.records('public')]))\nassert x.shape == (2, 3, 32, 32)\n"
            "preprocess(c.records('public')[0]['image'], 64)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unfinished_cache_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="06_images"): M.ImageCache(tmp_path)


# ---- augmentation -----------------------------------------------------------------------------------------------------

def test_augment_keeps_type_range_and_input():
    x = torch.rand(16, 3, 24, 24)
    before = x.clone()
    for form in (x, x.double(), (x * 255).byte()):
        out = M.Augment(affine=1, colour=1)(form)
        assert out.shape == x.shape and out.is_floating_point() and 0 <= out.min() and out.max() <= 1
    assert torch.equal(x, before)
    assert M.Augment(affine=1, colour=1)(x.bfloat16()).dtype == torch.bfloat16


def test_augment_is_reproducible_and_independent_of_the_global_seed():
    x = torch.rand(32, 3, 16, 16)
    torch.manual_seed(1); a = M.Augment(seed=3)(x)
    torch.manual_seed(2); b = M.Augment(seed=3)(x)
    assert torch.equal(a, b) and not torch.equal(a, M.Augment(seed=4)(x))


def test_augment_rates():
    x = torch.rand(2000, 3, 4, 4)
    flipped = (M.Augment(affine=0, colour=0)(x) == x.flip(-1)).flatten(1).all(1).float().mean()
    moved = (M.Augment(flip=0, colour=0)(x) != x).flatten(1).any(1).float().mean()
    lit = (M.Augment(flip=0, affine=0)(x) - x).abs().flatten(1).amax(1).gt(1e-4).float().mean()
    assert abs(flipped - .5) < .05 and abs(moved - .25) < .05 and abs(lit - .25) < .05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augment_same_on_gpu():
    x = torch.rand(64, 3, 64, 64)
    a, b = M.Augment(affine=1, colour=1, seed=5)(x), M.Augment(affine=1, colour=1, seed=5)(x.cuda()).cpu()
    assert (a - b).abs().max() < 1e-4


# ---- real images ------------------------------------------------------------------------------------------------------

@pytest.mark.real
def test_crop_and_pixels_on_real_images():
    table = real_folder() / "records.csv"
    if not table.exists(): pytest.skip(f"no real images ($KEEPFIT_REAL, looked for {table.name} there)")
    d = pd.read_csv(table)
    for source, g in d.groupby("source"):
        for p in g.path.head(3):
            a = M.decode(real_folder() / p)
            h, w = M.foreground_crop(a).shape[:2]
            assert h >= a.shape[0] / 3 and w >= a.shape[1] / 3, source
            assert torch.equal(M.preprocess(real_folder() / p, 64), M.preprocess(a, 64)), source


def test_a_frame_of_a_dicom_file_is_a_picture(tmp_path):
    import pydicom
    frames = np.random.default_rng(0).integers(0, 255, (3, 20, 30), dtype=np.uint8)
    ds = pydicom.Dataset(); ds.file_meta = pydicom.dataset.FileMetaDataset(); ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.5.4", "1.2.3"
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.SamplesPerPixel, ds.PhotometricInterpretation = 20, 30, 3, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.PixelData = 8, 8, 7, 0, frames.tobytes()
    ds.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    assert (M.decode(tmp_path / "scan.dcm#2") == frames[2][..., None]).all()
    with pytest.raises(ValueError, match="frame"): M.decode(tmp_path / "scan.dcm#9")
    with pytest.raises(FileNotFoundError): M.decode(tmp_path / "none.dcm#1")


def test_batches_are_read_in_inference_mode(tmp_path):
    "Pictures are unpacked in threads, which do not share the caller's inference mode."
    for k in range(8): Image.fromarray(np.full((40, 40, 3), 20 * k, np.uint8)).save(tmp_path / f"{k}.png")
    M.make_cache({"public": [dict(image=str(tmp_path / f"{k}.png"), modality="CFP") for k in range(8)]}, tmp_path, M.Settings(size=32, crop=False))
    with torch.inference_mode(): batch = M.ImageCache(tmp_path).batch(np.arange(8))
    assert batch.shape == (8, 3, 32, 32) and (batch.float().mean((1, 2, 3)) - 20 * torch.arange(8)).abs().max() < 2
