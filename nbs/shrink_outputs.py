"""Smaller committed figures: PNG outputs of the chapters get a palette of 256 colours where that saves a fifth or more; what is mostly photographs becomes a JPEG where that halves it again.

    python nbs/shrink_outputs.py [NOTEBOOK …]        all chapters without words; run after executing a chapter, before the commit
"""
import base64, io, json, sys
from pathlib import Path

from PIL import Image

LEAST = 12_000      # bytes; smaller figures stay as they are
TIGHT = dict(optimize=True, progressive=True)
LARGE = 60_000      # bytes; a JPEG beyond that is made again with less quality


def smaller(data: bytes) -> bytes:
    "The picture with a palette, or as it was."
    picture = Image.open(io.BytesIO(data)); out = io.BytesIO()
    if picture.mode == "P": return data
    flat = Image.new("RGB", picture.size, "white"); flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    flat.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)
    return out.getvalue() if len(out.getvalue()) < .8 * len(data) else data


def as_jpeg(data: bytes) -> bytes | None:
    "The picture as JPEG where that is less than half of it: grain compresses badly as PNG, lines and letters badly as JPEG."
    out = io.BytesIO(); picture = Image.open(io.BytesIO(data)).convert("RGBA"); flat = Image.new("RGB", picture.size, "white"); flat.paste(picture, mask=picture.getchannel("A"))
    flat.save(out, "JPEG", quality=85, **TIGHT)
    if len(out.getvalue()) > LARGE: out = io.BytesIO(); flat.save(out, "JPEG", quality=70, **TIGHT)
    return out.getvalue() if len(out.getvalue()) < .5 * len(data) else None


def shrink(path: Path) -> int:
    "Bytes saved in one notebook."
    notebook, before = json.loads(path.read_text(encoding="utf-8")), path.stat().st_size
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    if not any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs): notebook["metadata"].pop("widgets", None)      # the state of progress bars that are gone
    for output in outputs:
        text = output.get("data", {}).get("image/png")
        if not text or len(text) <= LEAST: continue
        data = smaller(base64.b64decode(text)); jpeg = as_jpeg(data) if len(data) > 2 * LEAST else None
        output["data"]["image/jpeg" if jpeg else "image/png"] = base64.b64encode(jpeg or data).decode() + "\n" * text.endswith("\n")
        if jpeg: del output["data"]["image/png"]
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return before - path.stat().st_size


def main():
    here = Path(__file__).parent
    for path in [Path(p) for p in sys.argv[1:]] or sorted(here.glob("*.ipynb")):
        if saved := shrink(path): print(f"{path.name}: {saved // 1024} KB less")


if __name__ == "__main__": main()
