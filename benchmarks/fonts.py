"""Make the Chinese font subsets of data/fonts from the full fonts of a Debian machine (fonts-droid-fallback, fonts-noto-cjk).

    python benchmarks/fonts.py [--droid FILE] [--noto FILE]

Glyphs kept: ASCII, punctuation, full-width forms, every character of data/ and of the modules that write text, and those listed in
data/fonts/characters.txt (the commonest of modern written Chinese). Hinting is dropped; Noto's cubic outlines become quadratic,
since reportlab embeds TrueType only. The subsets are renamed, as the OFL asks of modified fonts with reserved names."""
import argparse
from pathlib import Path

from fontTools.pens.cu2quPen import Cu2QuPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTCollection, TTFont, newTable

ROOT = Path(__file__).resolve().parent.parent


def characters() -> set[int]:
    "Every code point that the subsets must hold."
    files = [p for p in ROOT.glob("data/**/*") if p.suffix in (".csv", ".txt", ".yaml")] + [ROOT / "keepfit_nb" / f"{m}.py" for m in ("knowledge", "phrases", "speech", "captions", "figures", "pages")]
    used = set("".join(p.read_text(encoding="utf-8") for p in files))
    wide = {c for c in used if 0x3000 <= ord(c) <= 0x9FFF or 0xFF00 <= ord(c) <= 0xFFEF}
    return {ord(c) for c in wide} | set(range(0x20, 0x7F)) | set(range(0xFF01, 0xFF5F)) | set(map(ord, "　、。〈〉《》「」『』【】〔〕～°±×µμ–—‘’“”…·"))


def quadratic(font: TTFont, error: float = 4) -> TTFont:
    "Cubic (CFF) outlines to quadratic ones (glyf), to within `error` units of 1,000."
    glyphs, order = font.getGlyphSet(), font.getGlyphOrder()
    table = newTable("glyf"); table.glyphs = {}; table.glyphOrder = order
    for name in order:
        pen = TTGlyphPen(None); glyphs[name].draw(Cu2QuPen(pen, error, reverse_direction=True)); table.glyphs[name] = pen.glyph()
    font["loca"], font["glyf"] = newTable("loca"), table
    maxp = font["maxp"]; maxp.tableVersion = 0x00010000
    for key in ("maxZones", "maxTwilightPoints", "maxStorage", "maxFunctionDefs", "maxInstructionDefs", "maxStackElements", "maxSizeOfInstructions",
                "maxComponentElements", "maxPoints", "maxContours", "maxCompositePoints", "maxCompositeContours", "maxComponentDepth"):
        setattr(maxp, key, 1 if key == "maxZones" else 0)
    post = font["post"]; post.formatType, post.extraNames, post.mapping, post.glyphOrder = 3.0, [], {}, order
    for tag in ("CFF ", "VORG"):
        if tag in font: del font[tag]
    font.sfntVersion = "\000\001\000\000"
    return font


def subset(font: TTFont, codes: set[int], name: str, path: Path) -> int:
    "Cut the font down, rename it, write it. Returns its size in bytes."
    options = Options(hinting=False, layout_features=[], notdef_outline=True, glyph_names=False, recalc_timestamp=False, name_IDs=[0, 1, 2, 4, 6, 13, 14])
    options.drop_tables += ["vhea", "vmtx", "BASE", "DSIG", "GSUB", "GPOS", "GDEF"]
    cutter = Subsetter(options); cutter.populate(unicodes=codes); cutter.subset(font)
    if "CFF " in font: quadratic(font)
    for record in font["name"].names:
        if record.nameID in (1, 4): record.string = name
        if record.nameID == 6: record.string = name.replace(" ", "")
    font.save(path, reorderTables=True)
    missing = codes - set(font.getBestCmap())
    print(f"{path.name}: {len(font.getBestCmap())} characters, {path.stat().st_size:,} bytes; not in the source: {''.join(map(chr, sorted(missing)))!r}")
    return path.stat().st_size


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--droid", default="/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf")
    args.add_argument("--noto", default="/usr/share/fonts/opentype/noto/NotoSerifCJK-Regular.ttc")
    args = args.parse_args()
    serif = next(f for f in TTCollection(args.noto).fonts if f["name"].getDebugName(1) == "Noto Serif CJK SC")
    codes, folder = characters(), ROOT / "data" / "fonts"
    total = subset(TTFont(args.droid), codes, "Keepfit Hei", folder / "hei.ttf") + subset(serif, codes, "Keepfit Song", folder / "song.ttf")
    assert total <= 1_000_000, f"{total:,} bytes: shorten characters.txt"
