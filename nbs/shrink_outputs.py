"""Smaller committed figures: PNG outputs of the chapters get a palette of 256 colours where that saves a fifth or more.

    python nbs/shrink_outputs.py [NOTEBOOK …]        all chapters without words; run after executing a chapter, before the commit
"""
import base64, io, json, sys
from pathlib import Path

from PIL import Image

LEAST = 12_000      # bytes; smaller figures stay as they are


def smaller(data: bytes) -> bytes:
    "The picture with a palette, or as it was."
    picture = Image.open(io.BytesIO(data)); out = io.BytesIO()
    if picture.mode == "P": return data
    flat = Image.new("RGB", picture.size, "white"); flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    flat.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(out, "PNG", optimize=True)
    return out.getvalue() if len(out.getvalue()) < .8 * len(data) else data


def shrink(path: Path) -> int:
    "Bytes saved in one notebook."
    notebook, before = json.loads(path.read_text(encoding="utf-8")), path.stat().st_size
    for output in (o for c in notebook["cells"] for o in c.get("outputs", [])):
        text = output.get("data", {}).get("image/png")
        if text and len(text) > LEAST: output["data"]["image/png"] = base64.b64encode(smaller(base64.b64decode(text))).decode() + "\n" * text.endswith("\n")
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return before - path.stat().st_size


def main():
    here = Path(__file__).parent
    for path in [Path(p) for p in sys.argv[1:]] or sorted(here.glob("*.ipynb")):
        if saved := shrink(path): print(f"{path.name}: {saved // 1024} KB less")


if __name__ == "__main__": main()
