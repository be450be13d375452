"Chapter 02.1 beyond what the notebook shows: every kind of hostile file, DICOM in its many forms, fuzzing."
import io, os, struct

import numpy as np, pydicom, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from pydicom import uid

from keepfit_nb import pictures as P
from keepfit_nb.pictures import check_image, describe_dicom, open_image, read_dicom, split_frame


def write(path, values, photometric="MONOCHROME2", bits=8, syntax=uid.ExplicitVRLittleEndian, compress=None, **tags):
    ds = pydicom.Dataset(); ds.file_meta = pydicom.dataset.FileMetaDataset(); ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = uid.OphthalmicTomographyImageStorage, uid.generate_uid()
    colour = photometric in ("RGB", "YBR_FULL", "YBR_FULL_422"); frames = values.ndim - (3 if colour else 2)
    ds.Rows, ds.Columns = values.shape[frames:frames + 2]
    if frames: ds.NumberOfFrames = len(values)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 3 if colour else 1, photometric, int(values.dtype.kind == "i")
    if colour: ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (16, bits, bits - 1) if bits > 8 else (8, 8, 7)
    ds.PixelData = values.astype(("<i2" if values.dtype.kind == "i" else "<u2") if bits > 8 else "u1").tobytes()
    for k, v in tags.items(): setattr(ds, k, v)
    if compress: ds.compress(compress)
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def grey(): return np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)


@pytest.mark.parametrize("photometric, values, expected", [
    ("MONOCHROME2", lambda g: g, lambda g: g), ("MONOCHROME1", lambda g: g, lambda g: 255 - g),
    ("RGB", lambda g: np.stack([g, g // 2, g // 3], -1), lambda g: np.stack([g, g // 2, g // 3], -1))])
def test_photometric_interpretations(tmp_path, grey, photometric, values, expected):
    assert (read_dicom(write(tmp_path / "x.dcm", values(grey), photometric)) == expected(grey)).all()


@pytest.mark.parametrize("compress", [uid.RLELossless, None])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
def test_transfer_syntaxes(tmp_path, grey, compress, syntax):
    path = write(tmp_path / "x.dcm", grey, syntax=uid.ExplicitVRLittleEndian if compress else syntax, compress=compress)
    assert (np.asarray(open_image(path)) == grey).all() and check_image(path) == ""


def encapsulated(path, data, syntax, rows, columns, samples=1, photometric="MONOCHROME2"):
    ds = pydicom.Dataset(); ds.file_meta = pydicom.dataset.FileMetaDataset(); ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Rows, ds.Columns = uid.OphthalmicPhotography8BitImageStorage, uid.generate_uid(), rows, columns
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = samples, photometric, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    if samples == 3: ds.PlanarConfiguration = 0
    ds.PixelData = pydicom.encaps.encapsulate([data]); ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)
    return path


def test_jpeg_and_jpeg2000_inside_dicom(tmp_path, grey):
    smooth = np.asarray(Image.fromarray(grey).resize((64, 64), Image.Resampling.BICUBIC)); coded = io.BytesIO(); Image.fromarray(smooth).save(coded, "JPEG", quality=95)
    path = encapsulated(tmp_path / "a.dcm", coded.getvalue(), uid.JPEGBaseline8Bit, 64, 64)
    assert np.abs(np.asarray(open_image(path)).astype(int) - smooth).mean() < 4 and check_image(path) == ""
    coded = io.BytesIO(); Image.fromarray(smooth).save(coded, "JPEG2000", irreversible=False)
    assert (np.asarray(open_image(encapsulated(tmp_path / "b.dcm", coded.getvalue(), uid.JPEG2000Lossless, 64, 64))) == smooth).all()


def test_a_missing_decoder_is_named_with_what_to_install(tmp_path):
    path = encapsulated(tmp_path / "x.dcm", b"\xff\xd8nothing", uid.JPEGLSLossless, 32, 32)
    with pytest.raises(ValueError, match="JPEG-LS Lossless.*install a decoder"): open_image(path)
    assert "install a decoder" in check_image(path)
    path = encapsulated(tmp_path / "v.dcm", b"nothing", uid.MPEG2MPML, 32, 32)
    with pytest.raises(ValueError, match="no picture format"): open_image(path)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_pixels_with_and_without_window(tmp_path, bits):
    ramp = np.tile(np.arange(64, dtype=np.uint16) * (2**bits // 64), (32, 1)); plain = read_dicom(write(tmp_path / "a.dcm", ramp, bits=bits))
    assert plain.dtype == np.uint8 and plain.min() == 0 and plain.max() == 255 and (np.diff(plain[0].astype(int)) >= 0).all()
    window = read_dicom(write(tmp_path / "b.dcm", ramp, bits=bits, WindowCenter=2**(bits - 1), WindowWidth=2**(bits - 2)))
    assert (window[0] == 0).sum() >= 20 and (window[0] == 255).sum() >= 20
    many = read_dicom(write(tmp_path / "c.dcm", ramp, bits=bits, WindowCenter=[2**(bits - 1), 10], WindowWidth=[2**(bits - 2), 10]))
    assert (many == window).all()                                                            # the first of several windows


def test_signed_pixels_and_rescale(tmp_path):
    ramp = np.tile(np.arange(-32, 32, dtype=np.int16) * 60, (32, 1))
    out = read_dicom(write(tmp_path / "a.dcm", ramp, bits=16, RescaleSlope=2, RescaleIntercept=100, WindowCenter=100, WindowWidth=7000))
    assert out[0, 0] == 0 and out[0, -1] == 255 and abs(int(out[0, 32]) - 128) < 4


def test_palette_colour(tmp_path, grey):
    ds = pydicom.dcmread(write(tmp_path / "p.dcm", grey)); ds.PhotometricInterpretation = "PALETTE COLOR"
    for n, k in enumerate((1, 2, 4)):                                                       # red, green, blue
        ds.add_new((0x0028, 0x1101 + n), "US", [256, 0, 16]); ds.add_new((0x0028, 0x1201 + n), "OW", (np.arange(256, dtype="<u2") * 256 // k).astype("<u2").tobytes())
    ds.save_as(tmp_path / "p.dcm"); out = read_dicom(tmp_path / "p.dcm")
    assert out.shape == (40, 60, 3) and (out[..., 0] == grey).all() and np.abs(out[..., 1].astype(int) - grey // 2).max() <= 1


def test_a_frame_is_named_behind_the_path_and_a_file_called_so_wins(tmp_path, grey):
    volume = write(tmp_path / "v.dcm", np.stack([grey, grey // 2, grey // 4, grey // 8]))
    assert (np.asarray(open_image(f"{volume}#3")) == grey // 8).all() and check_image(f"{volume}#3") == ""
    assert (np.asarray(open_image(volume)) == grey // 4).all() and "4 frames" in check_image(f"{volume}#4")
    Image.fromarray(grey).save(tmp_path / "a#1", "PNG"); assert split_frame(tmp_path / "a#1") == (str(tmp_path / "a#1"), None)
    Image.fromarray(grey).save(tmp_path / "t.tif", save_all=True, append_images=[Image.fromarray(grey // 2)])
    assert (np.asarray(open_image(f"{tmp_path}/t.tif#1")) == grey // 2).all()
    with pytest.raises(ValueError, match="no frame 5"): open_image(f"{tmp_path}/t.tif#5")


def bomb_png(path, side=20_000):
    "A valid header that claims side × side pixels, in a file of a few bytes."
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", __import__("zlib").crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_bombs_and_dots_are_refused_from_the_header(tmp_path, grey):
    for side in (9_000, 20_000):                      # below and above Pillow's own limit
        with pytest.raises(ValueError, match="too many pixels"): open_image(bomb_png(tmp_path / "bomb.png", side))
        assert check_image(tmp_path / "bomb.png").startswith("image: too many pixels")
    ds = pydicom.dcmread(write(tmp_path / "b.dcm", grey)); ds.Rows = ds.Columns = 20_000; ds.save_as(tmp_path / "b.dcm")
    with pytest.raises(ValueError, match="too many pixels"): open_image(tmp_path / "b.dcm")
    assert check_image(tmp_path / "b.dcm").startswith("image: too many pixels")
    for mode in ("RGB", "L"):
        Image.new(mode, (1, 1)).save(tmp_path / "dot.png"); assert check_image(tmp_path / "dot.png") == "image: too small (1 × 1 pixels)"
        with pytest.raises(ValueError, match="too small"): open_image(tmp_path / "dot.png")


def test_links_wrong_endings_and_unreadable_files_are_reasons(tmp_path, grey, monkeypatch):
    Image.fromarray(grey).save(tmp_path / "real.png")
    os.symlink("real.png", tmp_path / "good.png"); os.symlink("nowhere.png", tmp_path / "gone.png"); os.symlink("loop.png", tmp_path / "loop.png")
    os.symlink(tmp_path, tmp_path / "dir.png"); (tmp_path / "words.jpg").write_text("words"); os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "really_png.jpg").write_bytes((tmp_path / "real.png").read_bytes())
    reasons = {n: check_image(tmp_path / n) for n in ("good.png", "gone.png", "loop.png", "dir.png", "words.jpg", "pipe.png", "really_png.jpg")}
    assert reasons == {"good.png": "", "gone.png": "image: a link to nowhere", "loop.png": "image: a link to nowhere", "dir.png": "image: not a file",
                       "words.jpg": "image: not an image", "pipe.png": "image: not a file", "really_png.jpg": ""}
    for n in ("gone.png", "dir.png", "words.jpg", "pipe.png"):
        with pytest.raises((ValueError, FileNotFoundError)): open_image(tmp_path / n)
    monkeypatch.setattr(P.os, "access", lambda *a: False); assert check_image(tmp_path / "real.png") == "image: may not be read"


def test_orientation_is_obeyed(tmp_path):
    img = Image.new("L", (60, 40)); img.paste(255, (0, 0, 10, 10)); exif = Image.Exif(); exif[274] = 6
    img.save(tmp_path / "x.jpg", exif=exif); up = open_image(tmp_path / "x.jpg")
    assert up.size == (40, 60) and np.asarray(up)[:10, -10:].mean() > 200


def test_what_a_header_says(tmp_path, grey):
    say = lambda **tags: describe_dicom(write(tmp_path / "d.dcm", grey, **tags))
    assert say(Modality="OPT", Laterality="R")["modality"] == "OCT" and say(Modality="OP")["modality"] == "CFP" and say()["modality"] == ""
    assert say(Modality="OP", StudyDescription="FFA early")["modality"] == "FFA" and say(ImageLaterality="L")["eye"] == "OS" and say(PatientID="7")["patient"] == "7"
    assert say(Modality="OP", SeriesDescription="Fluorescein 30 s")["modality"] == "FFA"
    for said in ("Autofluorescence", "auto-fluorescence 488 nm", "FAF OD"): assert say(Modality="OP", SeriesDescription=said)["modality"] == ""      # neither a colour photograph nor an angiogram
    (tmp_path / "n.dcm").write_bytes(b"x" * 500)
    with pytest.raises(ValueError): describe_dicom(tmp_path / "n.dcm")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 3000), flips=st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 255)), max_size=6), kind=st.sampled_from(["dcm", "png", "jpg", "tif"]))
def test_damaged_files_never_crash_the_door(tmp_path, grey, cut, flips, kind):
    path = tmp_path / f"x.{kind}"
    write(path, grey) if kind == "dcm" else Image.fromarray(grey).save(path)
    data = bytearray(path.read_bytes()[:-cut or None])
    for at, byte in flips:
        if at < len(data): data[at] = byte
    path.write_bytes(data); said = check_image(path)
    assert said == "" or said.startswith("image: ")
    try: assert isinstance(open_image(path), Image.Image)
    except ValueError as e: assert str(path) in str(e)
