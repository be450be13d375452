"A small bench as stage 14 would leave it, with embeddings that we know everything about."
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from keepfit_nb.evaluation import Bench, Settings, save_embeddings, tasks_for
from keepfit_nb.profiles import write_json


def record(row, categories, source="clinic", split="test", attributes=(), modality="CFP", patient=""):
    categories = [categories] if isinstance(categories, str) else list(categories)
    return dict(row=row, image=f"{row}.png", modality=modality, categories=categories, attributes=list(attributes), source=source, split=split,
                patient=patient, caption="", eye="")


def make_bench(folder: Path, per_class=12, models=(("keepfit", 0), ("start", 0)), noise=.3, seed=0) -> Bench:
    "Three diseases at the corners of the unit cube; glaucoma and normal of source phantoms, with one fact."
    rng, records, at = np.random.default_rng(seed), [], 0
    corner = {"normal": 0, "glaucoma": 1, "macular hole": 2}
    for name in corner:
        for split in ("train", "test"):
            for i in range(per_class):
                facts = [f"cup: {('moderate', 'large')[i % 2]}"] if name == "glaucoma" else []
                records.append(record(at, name, "phantoms", split, facts, patient=f"p{at}")); at += 1
    settings = Settings(bootstrap=50)
    x = np.eye(3, 8)[[corner[r["categories"][0]] for r in records]] + noise * rng.normal(size=(at, 8))
    for r, v in zip(records, x):
        if r["attributes"] == ["cup: large"]: v[5] += 1.
    for model, s in models:
        arrays = {"rows": np.arange(at), "unprojected": x.astype(np.float32)}
        if model != "start": arrays["projected"] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        save_embeddings(folder / model / f"{s}.parquet", arrays, "f00d")
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    write_json(folder / "tasks.json", dict(run="test", seed=0, settings=settings.model_dump(), left_out={}, leak={},
               tasks=[t.model_dump() for t in tasks_for(records, settings)], models=[dict(model=m, seed=s) for m, s in models]))
    return Bench(folder)


class FakeModel:
    "Knows a few words; a sentence is the mean of theirs."
    words = {"normal": 0, "glaucoma": 1, "macular hole": 2, "very large": 5, "marked": 5}
    def embed_text(self, texts):
        out = np.full((len(texts), 8), 1e-3, np.float32)
        for row, text in zip(out, texts):
            for word, i in self.words.items(): row[i] += word in text.lower()
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def fake_run(folder: Path, variant="keepfit"): return SimpleNamespace(dir=folder, seed=0, device="cpu", default_variant=variant, variants={variant: {}}, seeds=[0])
