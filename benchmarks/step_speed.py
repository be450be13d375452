"""How fast is a training step? The kit's loop against the same computation written plainly, in one run on one machine.

    python benchmarks/step_speed.py                                   # CPU, small
    python benchmarks/step_speed.py --device cuda --json FILE         # ResNet-50 + BERT-base, 24 public + 24 elite, 512 px

The plain loop follows the open releases: pictures become float32 on the host (loaded ahead by worker processes on a GPU
machine) and are copied so; texts are tokenised one by one and padded to 256; public and elite images pass the encoders
separately; fp16 autocast with a gradient scaler on a GPU; the loss is read, and the CUDA cache emptied, at each step.
Modules, weights, images, texts, losses, augmentation and optimiser are the same. Nothing is slowed down on purpose.
Runs where only torch, timm, transformers, accelerate, pydantic and fastcore are (no opencv, pyarrow or datasets).
"""
import argparse, json, platform, statistics, subprocess, tempfile, threading, time
from pathlib import Path

import numpy as np, torch

from keepfit_nb.batches import Batches, words_of
from keepfit_nb.contrastive import clip_loss, share_targets
from keepfit_nb.encoders import Settings as Encoders, text_config, train_tokenizer, vocabulary_texts
from keepfit_nb.images import ImageCache, prefetch
from keepfit_nb.knowledge import corpus, load_knowledge
from keepfit_nb.pretraining import KeepFIT, Settings
from keepfit_nb.profiles import write_json
from keepfit_nb.training import fit, parameter_groups

LONGEST = 256                                            # tokens the open releases pad each text to
SIZES = {"cpu": dict(size=96, batch=16, image="resnet18", text=dict(text_model="tiny", text_width=256, text_layers=4, text_heads=4), images=96, steps=8, warm=2),
         "cuda": dict(size=512, batch=48, image="resnet50", text=dict(text_model="emilyalsentzer/Bio_ClinicalBERT"), images=192, steps=30, warm=8)}


def make_cache(folder, size, images, seed=0):
    "Synthetic pictures (smooth noise) and records whose captions have the lengths of real ones: mean 32 words, median 26, at most 183."
    rng, folder = np.random.default_rng(seed), Path(folder)
    coarse = torch.from_numpy(rng.random((images, 3, 16, 16), dtype=np.float32) * 255)
    np.save(folder / "images.npy", torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").byte().numpy())
    names, words = [n for n, c in load_knowledge().items() if "CFP" in c.modalities], " ".join(corpus()).split()
    lengths = np.minimum(rng.lognormal(np.log(26), .62, images), 183).astype(int).clip(4)
    rows = {"public": [], "elite": [], "evaluation": []}
    for i in range(images):
        role, start = ("public", "elite")[i % 2], int(rng.integers(len(words) - 200))
        caption = " ".join(words[start:start + lengths[i]]) if role == "elite" else ""
        rows[role].append(dict(row=i, modality="CFP", caption=caption, categories=[names[int(rng.integers(len(names)))]], attributes=[], source="synthetic", split="train"))
    for role, lines in rows.items(): (folder / f"{role}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    write_json(folder / "cache.json", dict(size=size, crop=True, images=images, **{k: len(v) for k, v in rows.items()}))
    return ImageCache(folder)


def make_model(folder, cache, s, device):
    "The same weights each time it is called."
    encoders = Encoders(image_model=s["image"], max_tokens=LONGEST, vocab_size=8000, projection=512, **s["text"])
    settings = Settings(batch_size=s["batch"], semantic=False, steps=s["steps"], lr=1e-4, weight_decay=1e-5, log_every=s["steps"], save_seconds=0)
    place = Path(folder) / "tokenizer"
    if not place.exists():
        tokenizer = train_tokenizer(vocabulary_texts(cache.folder), 8000, LONGEST)
        tokenizer.save_pretrained(place); text_config(encoders, len(tokenizer)).save_pretrained(place)
    return KeepFIT(encoders, place, cache.size, settings=settings, seed=0), settings


class Watch:
    "Seconds between two steps, peak memory and use of the device meanwhile."
    def __init__(self, device, warm): self.device, self.warm, self.use, self.on = torch.device(device), warm, [], False
    def sync(self):
        if self.device.type == "cuda": torch.cuda.synchronize()
    def _ask(self):
        while self.on:
            try: self.use.append(float(subprocess.run(["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=5).stdout.split()[0]))
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired): return
            time.sleep(.3)
    def start(self):
        self.sync(); self.on = self.device.type == "cuda"
        if self.on: torch.cuda.reset_peak_memory_stats(); threading.Thread(target=self._ask, daemon=True).start()
        self.cpu, self.begun = time.process_time(), time.perf_counter()
    def stop(self):
        self.sync(); self.seconds, self.on = time.perf_counter() - self.begun, False
        self.cpu = time.process_time() - self.cpu
        self.memory = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
    def step(self, done, total):
        if done == self.warm: self.start()
        if done == total: self.stop()


def run_ours(folder, cache, s, device):
    "The kit: `Batches`, ahead of time, through `fit`."
    model, settings = make_model(folder, cache, s, device)
    batches, watch, shapes = Batches(cache, model.text_encoder.tokenize, settings, 0), Watch(device, s["warm"]), []
    def seen(step):
        b = batches(step); m = b["tokens"]["attention_mask"]
        shapes.append((m.shape[1], int(m.sum(1).max()))); return b
    ahead = prefetch(seen, device=device if torch.device(device).type == "cuda" else None)
    with tempfile.TemporaryDirectory() as out:
        curves = fit(model, ahead, settings, out, device=device, label="ours", verbose=False, after_step=lambda done, _: watch.step(done, s["steps"]))
    ahead.close() if hasattr(ahead, "close") else None
    return watch, dict(padded_beyond_longest=sum(a > b for a, b in shapes), mean_tokens=statistics.mean(a for a, _ in shapes), wait=float(curves["wait"].iloc[-1]), loss=float(curves["loss"].iloc[-1]))


class PlainData(torch.utils.data.Dataset):
    "One batch an item: float pictures and texts, as a loader of the open releases gives them; the rows and texts of `Batches`."
    def __init__(self, batches, steps): self.batches, self.steps = batches, steps
    def __len__(self): return self.steps
    def __getitem__(self, step):
        b, rng = self.batches, np.random.default_rng([self.batches.seed, 7, step])
        chosen = [(role, k) for role, rows in b.rows.items() for k in rows(step)]
        records = [b.records[role][k] for role, k in chosen]
        pixels = torch.stack([torch.from_numpy(b.cache.images[r["row"]].astype(np.float32) / 255) for r in records])
        return dict(pixels=pixels, texts=[words_of(r, role, b.settings, rng) for (role, _), r in zip(chosen, records)],
                    n=sum(role == "public" for role, _ in chosen), categories=torch.stack([b.labels[role][k] for role, k in chosen]))


def plain_losses(model, batch, augment, device):
    "Both losses of one step, public and elite through the encoders one after the other, texts padded to 256 one by one."
    text, n, total = model.text_encoder, batch["n"], 0.
    pixels = batch["pixels"].to(device)
    for part in (slice(0, n), slice(n, None)):
        x = augment(pixels[part]) if augment else pixels[part]
        pooled, _ = model.image_encoder((x - model.image_encoder.mean) / model.image_encoder.std)
        rows = [text.tokenizer(t, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt") for t in batch["texts"][part]]
        tokens = {k: torch.cat([r[k] for r in rows]).to(device) for k in ("input_ids", "attention_mask")}
        v, w = model.image_projection(pooled), model.text_projection(text(tokens))
        targets = share_targets(batch["categories"][part].to(device)) if part.start == 0 else None
        total = total + clip_loss(v, w, targets, model.temperature())
    return total


def run_plain(folder, cache, s, device):
    model, settings = make_model(folder, cache, s, device)
    device, cuda = torch.device(device), torch.device(device).type == "cuda"
    model = model.to(device, memory_format=torch.contiguous_format).train()
    batches, watch, waited = Batches(cache, model.text_encoder.tokenize, settings, 0), Watch(device, s["warm"]), 0.
    loader = iter(torch.utils.data.DataLoader(PlainData(batches, s["steps"]), batch_size=None, num_workers=8 if cuda else 0, pin_memory=cuda))
    optimizer = torch.optim.AdamW([{k: v for k, v in g.items() if k in ("params", "weight_decay")} for g in parameter_groups(model, settings)], lr=settings.lr)
    scaler, kind = torch.amp.GradScaler("cuda", enabled=cuda), torch.float16
    for step in range(s["steps"]):
        asked = time.perf_counter(); batch = next(loader); waited += time.perf_counter() - asked if step >= s["warm"] else 0
        with torch.autocast(device.type, kind, enabled=cuda): loss = plain_losses(model, batch, model.augment, device)
        optimizer.zero_grad(); scaler.scale(loss).backward()
        scaler.unscale_(optimizer); torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        scaler.step(optimizer); scaler.update()
        last = loss.item()
        if cuda: torch.cuda.empty_cache()
        watch.step(step + 1, s["steps"])
    return watch, dict(wait=waited / watch.seconds, loss=last)


def same_computation(folder, cache, s):
    "Largest difference of the two losses, dropout and batch statistics off: the two loops compute the same thing."
    model, settings = make_model(folder, cache, s, "cpu")
    batches = Batches(cache, model.text_encoder.tokenize, settings.model_copy(update=dict(augment=False)), 0)
    model.settings = batches.settings; model.eval()
    data = PlainData(batches, 2)
    with torch.no_grad(): return max(abs((model.losses(batches(k))["loss"] - plain_losses(model, data[k], None, "cpu")).item()) for k in range(2))


def measure(device="cpu", rounds=2, **changes) -> dict:
    "speed.step_ratio: plain seconds over ours, the best of `rounds` alternating runs of each."
    s = SIZES[torch.device(device).type] | changes
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    out, best = dict(device=name, torch=torch.__version__, image_model=s["image"], size=s["size"], batch=s["batch"], steps=s["steps"] - s["warm"]), {}
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(folder, s["size"], s["images"])
        if torch.device(device).type == "cpu": out["difference"] = same_computation(folder, cache, s)
        for _ in range(rounds):
            for kind, run in (("plain", run_plain), ("ours", run_ours)):
                watch, facts = run(folder, cache, s, device)
                if kind not in best or watch.seconds < best[kind][0].seconds: best[kind] = watch, facts
    for kind, (watch, facts) in best.items():
        n = s["steps"] - s["warm"]
        out |= {f"{kind}.images_per_second": round(n * s["batch"] / watch.seconds, 2), f"{kind}.seconds_per_step": round(watch.seconds / n, 4),
                f"{kind}.cpu_seconds_per_step": round(watch.cpu / n, 4)} | {f"{kind}.{k}": round(v, 4) for k, v in facts.items()}
        if watch.memory: out[f"{kind}.peak_memory_gb"] = round(watch.memory, 2)
        if watch.use: out[f"{kind}.utilisation"] = round(statistics.mean(watch.use), 1)
    ratio = best["plain"][0].seconds / best["ours"][0].seconds
    out[f"step_ratio_{torch.device(device).type.replace('cuda', 'gpu')}"] = round(ratio, 3)
    out["step_ratio_cpu_time"] = round(best["plain"][0].cpu / best["ours"][0].cpu, 3)      # less noisy where other programs run too
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", default="cpu"); p.add_argument("--rounds", type=int, default=2); p.add_argument("--json")
    for k in ("size", "batch", "steps", "images"): p.add_argument(f"--{k}", type=int)
    a = vars(p.parse_args()); file = a.pop("json")
    values = measure(**{k: v for k, v in a.items() if v is not None})
    for k, v in values.items(): print(f"{k}: {v}")
    if file: Path(file).parent.mkdir(parents=True, exist_ok=True); Path(file).write_text(json.dumps(values, indent=1))
