"The method in one figure, drawn by us: `python docs/method.py` writes docs/method.svg (its boxes are links) and docs/method.png."
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666"      # Okabe and Ito: safe for colour-blind eyes
ALT = ("The method from left to right. Public images with category names and elite images with expert captions enter. An image encoder and a text "
       "encoder, which has read ophthalmic text before, turn them into vectors of one space, trained by a contrastive loss. For each public image "
       "a semantic reference (whole images) and an appearance reference (patches named by visual tokens) look for similar elite images; a gate mixes "
       "both, and the mixture of expert texts pulls the public image. A caption decoder writes the elite captions. The model is judged zero-shot, "
       "few-shot and by a linear probe on CFP, FFA and OCT.")
# name: (x, y, width, height, colour, title, small print, chapter)
BOXES = {
    "public": (0.1, 3.55, 2.3, 1.0, BLUE, "Public images", "many; category names", "05_sources"),
    "elite": (0.1, 1.55, 2.3, 1.0, ORANGE, "Elite pairs", "few; an expert's captions", "04_atlas"),
    "corpus": (0.1, 0.05, 2.3, 1.0, GREY, "Ophthalmic text", "hidden words, guessed", "09_text_pretraining"),
    "tokens": (3.15, 5.0, 2.3, 1.0, GREEN, "Visual tokens", "a learned alphabet", "11.1_tokenizer"),
    "image": (3.15, 3.55, 2.3, 1.0, GREY, "Image encoder", r"$g$: whole,  $p$: patches", "07_encoders"),
    "text": (3.15, 1.55, 2.3, 1.0, GREY, "Text encoder", r"$t$: whole text", "07_encoders"),
    "clip": (6.2, 1.55, 2.3, 1.0, BLUE, "Contrastive loss", "who shares a category", "10_contrastive"),
    "sem": (9.0, 3.7, 2.65, 1.0, PINK, "Semantic reference", "whole images", "12.2_references"),
    "app": (9.0, 5.0, 2.65, 1.0, GREEN, "Appearance reference", "patch by patch", "11_appearance"),
    "inject": (12.2, 4.3, 2.3, 1.1, PINK, "Injection", r"gate $\gamma$;  $R = A\,t_e$", "12_injection"),
    "decoder": (6.2, 2.95, 2.3, 1.0, ORANGE, "Caption decoder", "writes what it saw", "12.1_decoder"),
    "judge": (12.2, 1.45, 2.3, 1.2, GREY, "Judged", "zero-shot, few-shot,\nlinear probe", "14_evaluation"),
}
ARROWS = [("public", "image", "e", "w"), ("elite", "text", "e", "w"), ("elite", "image", "ne", "sw"), ("public", "text", "se", "nw"), ("corpus", "text", "e", "s"),
          ("image", "clip", "se", "nw"), ("text", "clip", "e", "w"), ("tokens", "image", "s", "n"), ("image", "sem", "ne", "w"), ("tokens", "app", "e", "w"),
          ("sem", "inject", "e", "sw"), ("app", "inject", "e", "nw"), ("image", "decoder", "e", "w"), ("clip", "judge", "e", "w")]


def corner(name, side):
    x, y, w, h = BOXES[name][:4]
    return (x + {"w": 0, "e": w}.get(side[-1], w / 2), y + {"n": h, "s": 0}.get(side[0], h / 2) + {"n": -.22, "s": .22}.get(side[0], 0) * (len(side) > 1))


def draw(link="{}.html"):
    "The figure; `link` makes a box's address of its chapter."
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    with plt.rc_context({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}):
        fig, ax = plt.subplots(figsize=(11.2, 4.7)); fig.subplots_adjust(0, 0, 1, 1)
        ax.set(xlim=(-.1, 14.65), ylim=(-.1, 6.15)); ax.axis("off")
        for a, b, out, into in ARROWS:
            ax.add_patch(FancyArrowPatch(corner(a, out), corner(b, into), arrowstyle="-|>", mutation_scale=13, lw=1.4, color=".45", shrinkA=2, shrinkB=3, zorder=1))
        ax.add_patch(FancyArrowPatch(corner("inject", "s"), corner("clip", "ne"), arrowstyle="-|>", mutation_scale=15, lw=2.2, color=PINK, shrinkA=2, shrinkB=3,
                                     connectionstyle="angle3,angleA=-100,angleB=12", zorder=1))
        ax.text(9.7, 2.95, "pulls the public image", color=PINK, fontsize=9.5, ha="center", va="bottom", style="italic")
        for x, y, w, h, colour, title, small, chapter in BOXES.values():
            box = ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=.14", fc="white", ec=colour, lw=2.2, zorder=2))
            box.set_url(link.format(chapter))
            head = ax.text(x + w / 2, y + h - .2, title, ha="center", va="top", fontsize=10.5, weight="bold", color=".1", zorder=3); head.set_url(link.format(chapter))
            ax.text(x + w / 2, y + h - .49, small, ha="center", va="top", fontsize=8.8, color=".25", zorder=3, linespacing=1.15)
            ax.text(x + w - .08, y + .06, chapter.split("_")[0], ha="right", va="bottom", fontsize=7.5, color=colour, zorder=3)
        return fig


def svg(text: str) -> str:
    "The drawing as it stands inside a page: without prologue, with a description for those who cannot see it."
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text); text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    return re.sub(r"<svg([^>]*)>", rf'<svg\1 role="img" aria-label="{ALT}"><title>The method, with links to its chapters</title>', text, count=1)


def main():
    import matplotlib; matplotlib.use("agg"); matplotlib.rcParams["svg.hashsalt"] = "keepfit_nb"        # the same drawing gives the same file
    fig, path = draw(), HERE / "method.svg"
    fig.savefig(path, metadata={"Date": None, "Creator": None}); path.write_text(svg(path.read_text(encoding="utf-8")), encoding="utf-8")
    fig.savefig(HERE / "method.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__": main()
