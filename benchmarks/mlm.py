"""Chapter 09 measured: masked ophthalmic terms of held-out paragraphs, before and after text pretraining from scratch.

`measure()` returns flat names for the study. The corpus is the one that ships, English paragraphs; nothing is tuned here.
"""
import argparse, json, tempfile
from pathlib import Path

from keepfit_nb.encoders import Settings as EncoderSettings, text_config, train_tokenizer
from keepfit_nb.knowledge import corpus
from keepfit_nb.text_pretraining import Settings, train_text


def measure(steps: int = 1500, seed: int = 0, folder: Path | None = None) -> dict:
    "A tiny text model (2 layers, 128 wide) reads the corpus for `steps` steps of 16 blocks of 96 tokens."
    encoders = EncoderSettings(max_tokens=96)
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(folder or tmp); tokenizer = train_tokenizer(corpus(), encoders.vocab_size, 96)
        tokenizer.save_pretrained(home / "tokenizer"); text_config(encoders, len(tokenizer)).save_pretrained(home / "tokenizer")
        m = train_text(encoders, corpus(), home / "tokenizer", Settings(steps=steps, max_tokens=96, term_share=.1, probes=1000), home, seed)
    keys = ("loss", "perplexity", "accuracy", "term_accuracy", "term_whole")
    return {f"{k}_{when}": m[f"{k}_{when}"] for k in keys for when in ("before", "after")} | dict(terms=m["terms"], steps=steps)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__); p.add_argument("--steps", type=int, default=1500); p.add_argument("--seed", type=int, default=0)
    print(json.dumps(measure(**vars(p.parse_args())), indent=1))
