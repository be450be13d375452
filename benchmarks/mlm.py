"""Chapter 09 measured: masked ophthalmic terms of held-out paragraphs, before and after text pretraining.

`measure()` returns flat names for the study: a tiny model from scratch, and, where $KEEPFIT_REAL holds its weights, a pretrained MiniLM
whose output layer is new (`pretrained.*`). The corpus is the one that ships, English paragraphs; nothing is tuned here.
"""
import argparse, json, tempfile
from pathlib import Path

from keepfit_nb.encoders import Settings as EncoderSettings, make_tokenizer, text_config
from keepfit_nb.knowledge import corpus
from keepfit_nb.profiles import real_folder
from keepfit_nb.text_pretraining import Settings, train_text

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
KEYS = ("loss", "perplexity", "accuracy", "term_accuracy", "term_whole")


def learn(encoders, settings, seed, folder=None):
    "Read the corpus, or go on in `folder`; the metrics of chapter 09."
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(folder or tmp); tokenizer, _ = make_tokenizer(encoders, corpus())
        tokenizer.save_pretrained(home / "tokenizer"); text_config(encoders, len(tokenizer)).save_pretrained(home / "tokenizer")
        m = train_text(encoders, corpus(), home / "tokenizer", settings, home, seed)
    return {f"{k}_{when}": m[f"{k}_{when}"] for k in KEYS for when in ("before", "after")} | dict(terms=m["terms"], steps=m["steps"], origin=m["origin"])


def measure(steps: int = 3000, pretrained_steps: int = 500, seed: int = 0, folder: Path | None = None) -> dict:
    "From scratch: 2 layers, 128 wide, blocks of 96 tokens, 16 a step. Pretrained: 6 layers, 384 wide, 8 a step."
    both = dict(max_tokens=96, term_share=.1, probes=1000)
    out = learn(EncoderSettings(max_tokens=96), Settings(steps=steps, **both), seed, folder)
    weights = real_folder() / "weights" / MINILM.split("/")[1]
    if weights.is_dir():
        encoders = EncoderSettings(max_tokens=96, text_model=MINILM, text_pretrained=str(weights))
        out |= {f"pretrained.{k}": v for k, v in learn(encoders, Settings(steps=pretrained_steps, batch_size=8, lr=3e-4, **both), seed, folder and Path(folder) / "pretrained").items()}
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__); p.add_argument("--steps", type=int, default=3000); p.add_argument("--pretrained-steps", type=int, default=500); p.add_argument("--seed", type=int, default=0)
    print(json.dumps(measure(**vars(p.parse_args())), indent=1))
