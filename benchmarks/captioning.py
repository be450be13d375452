"""Does the caption decoder say what is there? Phantoms of 64 px, encoder and decoder from scratch, for the study.

Two ways. *Findings first*: for `labels` steps the encoder learns which findings the training captions state, then stays as it is while the
decoder learns to write from what it sees; it looks once at a few augmented copies of each image. *Alone*: the caption loss teaches both.
`measure()` does both, for the study. `python benchmarks/captioning.py` is the second, `… --labels 1500 --no-joint` the first.
`present_f1(model, cache)` scores a finished model (a folder of 13_pretraining).
"""
import argparse, functools, json, multiprocessing, tempfile
from collections import Counter
from pathlib import Path

import numpy as np, torch
from torch import nn

from keepfit_nb.captioning import finding_counts, findings_f1
from keepfit_nb.decoder import CaptionDecoder, Settings, f1, facts_only, score_captions, shown, stage_dims, stage_grids, stated
from keepfit_nb.encoders import ImageEncoder, judging, timm_model, train_tokenizer, vocabulary_texts
from keepfit_nb.images import Augment
from keepfit_nb.measures import interval, resample
from keepfit_nb.profiles import MODALITIES, seed_everything
from keepfit_nb.training import Settings as Training, fit, rows_of_step


def paint(train, test, size, seed, folder, processes=1):
    "Pixels (N, 3, S, S) and rows of a training set with captions and of a test set, `train` and `test` images a modality."
    from PIL import Image
    from keepfit_nb.captions import Settings as Phantoms, jobs_of, make_row
    settings = Phantoms(size=size, n_public=0, n_elite=train, n_eval_train=0, n_eval_test=test)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    work = functools.partial(make_row, settings=settings, folder=folder)
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool: rows = pool.map(work, jobs_of(settings, seed), chunksize=50)
    else: rows = [work(j) for j in jobs_of(settings, seed)]
    pixels = torch.from_numpy(np.stack([np.array(Image.open(folder / r["image"]).convert("RGB")) for r in rows])).permute(0, 3, 1, 2).contiguous()
    part = lambda role: [i for i, r in enumerate(rows) if r["role"] == role]
    return {role: (pixels[part(role)], [rows[i] for i in part(role)]) for role in ("elite", "evaluation")}


class Captioner(nn.Module):
    "Encoder and decoder. The caption loss of pixels teaches both, that of grids (`views`) the decoder alone."
    def __init__(self, tokenizer, settings, name="resnet10t"):
        super().__init__()
        self.encoder = ImageEncoder(timm_model(name))
        self.decoder = CaptionDecoder(tokenizer, stage_dims(self.encoder, settings.stages), settings)
        self.augment, self.stages = Augment(flip=0.), settings.stages      # a mirrored right eye is a left eye

    def grids(self, pixels): return stage_grids(self.encoder, self.encoder.normalise(pixels), self.stages)[1]
    def forward(self, batch):
        if "grids" in batch: grids = [g.to(self.decoder.device).float() for g in batch["grids"]]
        else:
            self.augment.generator.manual_seed(batch["step"])
            grids = self.grids(self.augment(batch["pixels"].to(self.decoder.device)))
        return dict(loss=self.decoder.loss(grids, batch["tokens"]))

    @torch.inference_mode()
    def views(self, pixels, n, seed, batch_size=128):
        "What the encoder, as it is, sees in `n` augmented copies of each image: grids (n, N, rows, columns, D_s) in half precision, one a stage."
        self.augment.generator.manual_seed(seed); self.augment.train()
        with judging(self.encoder): seen = [[g.half().cpu() for g in self.grids(self.augment(p.to(self.decoder.device)))] for _ in range(n) for p in pixels.split(batch_size)]
        return [torch.cat(g).unflatten(0, (n, len(pixels))) for g in zip(*seen)]

    @torch.inference_mode()
    def caption(self, pixels, strategy=None, batch_size=128):
        with judging(self): return [c for p in pixels.split(batch_size) for c in self.decoder.generate(self.grids(p.to(self.decoder.device)), strategy)]


class Findings(nn.Module):
    "The captioner's encoder with one linear head over findings. Each stage's grid gives its mean and its largest value, for a lesion is small."
    def __init__(self, captioner, names):
        super().__init__()
        self.encoder, self.augment, self.stages, self.names = captioner.encoder, captioner.augment, captioner.stages, names
        self.head = nn.Linear(2 * sum(stage_dims(self.encoder, self.stages)), len(names))

    def logits(self, pixels):
        grids = [g.flatten(1, 2) for g in stage_grids(self.encoder, self.encoder.normalise(pixels), self.stages)[1]]
        return self.head(torch.cat([x for g in grids for x in (g.mean(1), g.amax(1))], 1))

    def forward(self, batch):
        self.augment.generator.manual_seed(batch["step"])
        logits = self.logits(self.augment(batch["pixels"].to(self.head.weight.device)))
        return dict(loss=nn.functional.binary_cross_entropy_with_logits(logits, batch["findings"].to(logits.device), reduction="none").sum(1).mean())

    @torch.inference_mode()
    def found(self, pixels, batch_size=128):
        "The findings that are likelier than not, a set an image."
        with judging(self): sure = torch.cat([self.logits(self.augment(p.to(self.head.weight.device))) > 0 for p in pixels.split(batch_size)]).cpu().tolist()
        return [{f for f, yes in zip(self.names, row) if yes} for row in sure]


def alike(step, lengths, batch_size, seed, among=8):
    "Rows of a step, all of about one length: `among` batches together are cut by length and come in random order. No image comes more often."
    first, rng = step // among * among, np.random.default_rng([seed, step // among])
    rows = np.concatenate([rows_of_step(first + k, len(lengths), batch_size, seed) for k in range(among)])
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return rows[rng.permutation(among)[step % among] * batch_size:][:batch_size]


def baselines(train, test):
    "What can be said without looking at more than the camera: the commonest findings or a real caption, chosen on the training captions."
    said, out = [stated(r["caption"]) for r in train], {}
    by = {m: [i for i, r in enumerate(train) if r["modality"] == m] for m in MODALITIES}
    def best_caption(rows):      # the training caption that would score best on the training set
        count = Counter(f for i in rows for f in said[i] if not f.startswith("disease: "))
        gain = lambda i: (2 * sum(count[f] for f in said[i]) / max(sum(count.values()) + len(rows) * sum(not f.startswith("disease: ") for f in said[i]), 1), -i)
        return train[max(rows, key=gain)]["caption"]
    commonest = lambda rows: Counter(train[i]["caption"] for i in rows).most_common(1)[0][0]
    for name, pick in (("majority", best_caption), ("commonest", commonest)):
        texts = {m: pick(rows) for m, rows in by.items() if rows}
        out[name] = score_captions([texts[r["modality"]] for r in test], test)["present_f1"]
    out["constant_set"] = max(constant_set(said, by, train, test, k) for k in range(1, 9))
    return out


def constant_set(said, by, train, test, k):
    "F1 of always stating the k commonest findings of the modality; the best k is taken on the test set, in its favour."
    top = {m: {f for f, _ in Counter(f for i in rows for f in facts_only(said[i])).most_common(k)} for m, rows in by.items()}
    return f1([top[r["modality"]] for r in test], [facts_only(shown(r)) for r in test])["f1"]


def present_f1(model, cache, limit=None, strategy=None, batch_size=128):
    "Score a finished KeepFIT (chapter 13) on the held-out evaluation images of a cache (chapter 06)."
    records = [r for r in cache.records("evaluation") if r["split"] == "test"][:limit]
    texts = [c for i in range(0, len(records), batch_size) for c in model.caption(cache.batch([r["row"] for r in records[i:i + batch_size]]), strategy)]
    return score_captions(texts, records)


def train_and_score(
    train: int = 2000,          # captioned images a modality
    test: int = 500,            # held-out images a modality
    steps: int = 3000,
    batch_size: int = 64,
    size: int = 64,
    stages=(-3, -2, -1),
    width: int = 128, layers: int = 2, lr: float = 1e-3,
    labels: int = 0,            # steps before those, in which the encoder learns which findings the training captions state
    least: int = 20,            # captions that state a finding, for it to be learned
    joint: bool = True,         # the captions teach the encoder too
    views: int = 4,             # augmented copies of an image that an encoder which stays looks at
    seed: int = 0,
    folder=None,                # pictures and checkpoints stay there; None: a temporary one
    every: int = 0,             # also score after each so many steps
    processes: int = 1,         # that paint
    device=None,
) -> dict:                      # flat names → numbers
    "caption.present_f1 of the profile's strategy, beside captions that look at nothing."
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(folder or temporary)
        sets = paint(train, test, size, seed, folder / f"set{train}_{test}_{size}_{seed}", processes)
        (pixels, rows), (unseen, held_out) = sets["elite"], sets["evaluation"]
        captions = [r["caption"] for r in rows]
        tokenizer = train_tokenizer(captions + vocabulary_texts(), 2000, 96)
        model = Captioner(tokenizer, Settings(width=width, layers=layers, stages=list(stages), max_tokens=112))
        written = [model.decoder.tokenize([c])["input_ids"][0] for c in captions]
        sizes = np.array([len(w) for w in written])
        def batch(step):
            if joint: at = rows_of_step(step, len(rows), batch_size, seed); looked_at = dict(pixels=pixels[at])
            else:
                at = alike(step, sizes, batch_size, seed); view = np.random.default_rng([seed, step, 1]).integers(views, size=batch_size)
                looked_at = dict(grids=[g[view, at] for g in seen])
            ids = nn.utils.rnn.pad_sequence([written[i] for i in at], batch_first=True)
            lengths = torch.from_numpy(sizes[at])
            return dict(step=step, **looked_at, tokens=dict(input_ids=ids, attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long()))
        def look(step, m):
            if every and step % every == 0: print(step, {k: round(v, 3) for k, v in score_captions(m.caption(unseen, "greedy"), held_out).items()}, flush=True)
        out = dict(train=len(rows), test=len(held_out), steps=steps, labels=labels)
        if labels:
            said = [stated(c) for c in captions]; names = sorted(f for f, n in Counter(f for s in said for f in s).items() if n >= least)
            first, findings = Findings(model, names), torch.tensor([[float(f in s) for f in names] for s in said])
            def named(step): return dict(step=step, pixels=pixels[at := rows_of_step(step, len(rows), batch_size, seed)], findings=findings[at])
            learned = fit(first, named, Training(steps=labels, lr=lr, log_every=50), folder / "findings", seed=seed, device=device, label="findings")
            out |= dict(findings=len(names), encoder_f1=f1([facts_only(s) for s in first.found(unseen)], [facts_only(shown(r)) for r in held_out])["f1"], findings_seconds=float(learned["seconds"].iloc[-1]))
        if not joint: seen = model.views(pixels, views, seed)
        curves = fit(model, batch, Training(steps=steps, lr=lr, log_every=50), folder / f"captions_{labels}_{'learning' if joint else 'fixed'}", seed=seed, device=device, label="captions", after_step=look)
        out["loss"] = float(curves["loss"].iloc[-1])
        for strategy in ("greedy", "beam", "nucleus"):
            texts = model.caption(unseen, strategy)
            scores = score_captions(texts, held_out)
            out |= {f"{strategy}.{k}": v for k, v in scores.items()}
            if strategy == "beam": out |= scores; kept = texts
        draws = resample([r["modality"] for r in held_out], 1000, seed, [r["patient"] for r in held_out])
        out["present_f1_low"], out["present_f1_high"] = interval(findings_f1(finding_counts(kept, [facts_only(shown(r)) for r in held_out]), draws))
        base = baselines(rows, held_out)
    for r, t in list(zip(held_out, kept))[::max(len(kept) // 6, 1)]: print(f"{r['modality']} {r['categories']} {r['attributes']}\n   {t}")
    return out | dict(majority_f1=base["majority"], commonest_f1=base["commonest"], constant_f1=base["constant_set"], seconds=float(curves["seconds"].iloc[-1]))


def measure(**sizes) -> dict:
    "Findings first, by plain names, and `alone.`; `sizes` are options of `train_and_score`."
    first, alone = train_and_score(**dict(labels=1500) | sizes | dict(joint=False)), train_and_score(**sizes | dict(labels=0, joint=True))
    return first | {f"alone.{k}": v for k, v in alone.items() if k not in ("train", "test", "majority_f1", "commonest_f1", "constant_f1")}


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("train", 2000), ("test", 500), ("labels", 0), ("least", 20), ("views", 4), ("steps", 3000), ("batch-size", 64), ("width", 128), ("layers", 2), ("seed", 0), ("every", 0), ("processes", 1)): p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--stages", type=int, nargs="+", default=[-3, -2, -1]); p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--joint", action=argparse.BooleanOptionalAction, default=True); p.add_argument("--folder"); p.add_argument("--device"); p.add_argument("--json")
    p.add_argument("--model", help="score this saved model instead"); p.add_argument("--cache", help="with the pictures of this 06_images folder")
    a = vars(p.parse_args()); file, model, cache = (a.pop(k) for k in ("json", "model", "cache"))
    if model:
        from keepfit_nb.images import ImageCache
        from keepfit_nb.pretraining import KeepFIT
        values = present_f1(KeepFIT.from_pretrained(model), ImageCache(cache))
    else: values = train_and_score(**a)
    for k, v in values.items(): print(f"{k}: {v}")
    if file: Path(file).write_text(json.dumps(values, indent=1))
