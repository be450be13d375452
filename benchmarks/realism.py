"""How like the real thing are the phantoms? Colour and sharpness beside real images, and train on phantoms → test on real ones.

Needs the folder of real images ($KEEPFIT_REAL); without it `measure` says so and returns nothing. Only numbers leave it.

What was chosen where: the cameras' colours (chapter 03a, `TINTS`), their blur and vignette were set by statistics of the real
*train* split. Blur, haze, grain and the boldness of lesions were also adjusted after looking at transfer to the real train split.
Network, augmentation, steps and normalisation were set once, not searched. No test image guided a choice. Training sees phantoms only; "adapted" means that the batch statistics of the trained network, and nothing else,
were taken anew from the unlabelled real train images of the same source.
"""
import csv, hashlib, json, os
from pathlib import Path

import cv2, numpy as np, torch, torch.nn.functional as F

from keepfit_nb.angiography import PHASES, render_angiogram
from keepfit_nb.eye import DISEASES, sample_eye, stream
from keepfit_nb.fundus import render_fundus, small_cnn
from keepfit_nb.images import decode, foreground_crop, resize_pad
from keepfit_nb.oct import render_oct
from keepfit_nb.profiles import project_root, read_json, real_folder, source_fingerprint, write_json

SIZE, SEEDS = 128, (0, 1, 2)
cv2.setNumThreads(1)


# ---- pictures, real and drawn, all through the kit's own crop and resize (chapter 06)

def real_rows(**want):
    "Rows of the real table with these values, each with its list of categories."
    with open(real_folder() / "records.csv", newline="", encoding="utf-8") as f:
        rows = [r | dict(categories=json.loads(r["categories"])) for r in csv.DictReader(f)]
    return [r for r in rows if all(r[k] == v for k, v in want.items())]


def real_picture(row): return resize_pad(foreground_crop(decode(real_folder() / row["path"])), SIZE)


def draw(modality, eye):
    "A phantom at a random size between the picture's and twice that, so that sharpness varies as the sources' does."
    r = stream(eye, "realism"); size = int(r.integers(SIZE, 2 * SIZE))
    if modality == "CFP": picture = render_fundus(eye, size)
    elif modality == "FFA": picture = render_angiogram(eye, size, list(PHASES)[int(r.integers(1, len(PHASES)))])      # not the choroidal flush: too short to be filed
    else: picture = render_oct(eye, size)
    return resize_pad(foreground_crop(picture) if modality != "OCT" else picture, SIZE)


# ---- statistics

def statistics(img) -> dict:
    "Colour and sharpness of one picture, inside its field of view. uint8 (S, S, 3) -> numbers."
    a = img.astype(np.float32) / 255; lit = a.max(2) > .06
    lit = lit if lit.mean() > .1 else np.ones_like(lit)
    hsv, grey = cv2.cvtColor(a, cv2.COLOR_RGB2HSV), a[..., 1]
    axis = (np.arange(len(a)) + .5) * 2 / len(a) - 1; radius = np.hypot(*np.meshgrid(axis, axis))
    inner = lit & (radius < .7)
    middle = grey[len(a) // 5:-(len(a) // 5), len(a) // 5:-(len(a) // 5)]
    power = np.abs(np.fft.fftshift(np.fft.fft2((middle - middle.mean()) * np.outer(*[np.hanning(len(middle))] * 2))))**2
    yy, xx = np.indices(power.shape) - len(power) // 2; f = np.hypot(yy, xx); band = (f > 2) & (f < .45 * len(power))
    out = {f"{k} {c}": float(v) for k, vs in (("mean", a[lit].mean(0)), ("sd", a[lit].std(0))) for c, v in zip(("red", "green", "blue"), vs)}
    return out | dict(hue=float((np.median(hsv[..., 0][lit]) + 60) % 360), saturation=float(hsv[..., 1][lit].mean()),
                      vignette=float(grey[lit & (radius > .75) & (radius < .9)].mean() / max(grey[inner].mean(), .01)) if (lit & (radius > .75) & (radius < .9)).any() else 1.,
                      sharpness=float(np.log(np.abs(cv2.Laplacian(grey, cv2.CV_32F))[inner].mean() / max(grey[inner].mean(), .01) + 1e-4)),
                      slope=float(np.polyfit(np.log(f[band]), np.log(power[band] + 1e-9), 1)[0]))


def effect(a, b): return float((np.mean(a) - np.mean(b)) / max(np.sqrt((np.var(a) + np.var(b)) / 2), 1e-6))


def compare(modality, n=160, split="test") -> dict:
    "Cohen's d of every statistic, phantoms minus real, sources weighted alike; |d| below .5 is a small difference."
    names = [d.name for d in DISEASES.values() if modality in d.modalities]
    drawn = [statistics(draw(modality, sample_eye(40_000_000 + i, "normal" if i % 2 else names[i // 2 % len(names)]))) for i in range(n)]
    real = {}
    for r in real_rows(modality=modality, split=split): real.setdefault(r["source"], []).append(statistics(real_picture(r)))
    out = {}
    for k in drawn[0] if modality == "CFP" else ("mean green", "sd green", "sharpness", "slope"):
        share = max(map(len, real.values()))
        pooled = np.concatenate([np.resize([s[k] for s in rows], share) for rows in real.values()])
        out |= {f"{modality}.{k.replace(' ', '_')}.d": round(effect([s[k] for s in drawn], pooled), 2),
                f"{modality}.{k.replace(' ', '_')}.phantoms": round(float(np.mean([s[k] for s in drawn])), 3),
                f"{modality}.{k.replace(' ', '_')}.real": round(float(pooled.mean()), 3)}
    return out


# ---- train on phantoms, test on real

def has(*names): return lambda r: any(n in r["categories"] for n in names)
def only(name): return lambda r: r["categories"] == [name]

AMD = "age-related macular degeneration"
TASKS = {   # name: (modality, source, real positives, real negatives, phantom positives, phantom negatives, split)
    "odir cataract vs normal": ("CFP", "odir", only("cataract"), only("normal"), [("cataract", {})], [("normal", {})], "test"),
    "odir glaucoma vs normal": ("CFP", "odir", only("glaucoma"), only("normal"), [("glaucoma", {})], [("normal", {})], "test"),
    "eyepacs retinopathy moderate or worse vs none": ("CFP", "eyepacs", has(*(f"{g} diabetic retinopathy" for g in ("moderate", "severe", "proliferative"))),
        only("no diabetic retinopathy"), [("diabetic retinopathy", {"grade": g}) for g in ("moderate", "severe", "proliferative")], [("normal", {})], "test"),
    "aptos proliferative vs moderate": ("CFP", "aptos", only("proliferative diabetic retinopathy"), only("moderate diabetic retinopathy"),
        [("diabetic retinopathy", {"grade": "proliferative"})], [("diabetic retinopathy", {"grade": "moderate"})], "test"),
    "kermany CNV or DME vs normal": ("OCT", "kermany", has("choroidal neovascularization", "diabetic macular edema"), only("normal"),
        [("neovascular " + AMD, {}), ("diabetic macular edema", {})], [("normal", {})], ""),
    "amd_mh macular hole vs AMD": ("OCT", "amd_mh", only("macular hole"), only(AMD), [("macular hole", {})], [(AMD, {}), ("neovascular " + AMD, {}), ("geographic atrophy", {})], ""),
    "huapu4_ffa BRVO vs normal": ("FFA", "huapu4_ffa", only("branch retinal vein occlusion"), only("normal"), [("branch retinal vein occlusion", {})], [("normal", {})], ""),
}


def as_input(pictures):
    "Per-image normalisation: each plane minus its own broad blur, over its own mean: contrast stays, tint and uneven light go. (n, 3, S, S)."
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    inside = (x.amax(1, keepdim=True) > .06).float()
    small = lambda t: F.interpolate(F.avg_pool2d(F.avg_pool2d(t, 8), 3, 1, 1, count_include_pad=False), size=SIZE, mode="bilinear", align_corners=False)
    broad = small(x * inside) / small(inside).clamp_min(.05)
    mean = (x * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp_min(1)
    return ((x - .8 * broad) / mean.clamp_min(.03)).clamp(-1.5, 2.5) * inside


def augmented(x, r):
    "Flips, turns, zoom, shift, contrast, blur and noise for a batch; r: torch generator."
    n = len(x); u = torch.rand(n, 8, generator=r) * 2 - 1
    angle, zoom, flip = u[:, 0] * .35, 1 + .15 * u[:, 1], torch.sign(u[:, 2])
    c, s = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([torch.stack([c * flip, -s, .08 * u[:, 3]], 1), torch.stack([s * flip, c, .08 * u[:, 4]], 1)], 1)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    soft = F.avg_pool2d(x, 3, 1, 1)
    x = torch.where((u[:, 5] > 0)[:, None, None, None], x + (soft - x) * torch.rand(n, 1, 1, 1, generator=r), x)
    return x * (1 + .35 * u[:, 6])[:, None, None, None] + .04 * (1 + u[:, 7])[:, None, None, None] * torch.randn(x.shape, generator=r)


def train(x, y, steps, seed, batch=32):
    "The small network of chapter 03a on phantoms alone."
    torch.manual_seed(seed); r, order = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    model = small_cnn(2).to(memory_format=torch.channels_last); opt = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=.05)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = order.integers(0, len(x), batch)
        guess = model(augmented(x[rows], r).contiguous(memory_format=torch.channels_last))      # bfloat16 is seven times slower where a CPU lacks it
        loss = F.cross_entropy(guess, y[rows], label_smoothing=.1)
        opt.zero_grad(); loss.backward(); opt.step(); plan.step()
    return model.eval()


@torch.no_grad()
def adapted(model, x, rounds=3):
    "The same weights with batch statistics taken from unlabelled real pictures."
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.reset_running_stats(); m.momentum = None
    model.train(); [m.eval() for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    for rows in torch.randperm(len(x) * rounds, generator=torch.Generator().manual_seed(0)).remainder(len(x)).split(64):
        if len(rows) > 8: model(x[rows])
    return model.eval()


@torch.no_grad()
def scores(model, x): return torch.cat([F.softmax(model(b), 1)[:, 1] for b in x.split(100)]).numpy()


def aca(y, guess, w=None):
    "Average class accuracy; w: how often each row was drawn."
    w = np.ones(len(y)) if w is None else w
    return float(np.mean([(w * (guess == k))[y == k].sum() / max(w[y == k].sum(), 1e-9) for k in (0, 1)]))


def interval(y, guesses, patients, n=1000):
    "95 % interval of the ACA, mean over the seeds' guesses, patients drawn with replacement."
    codes = np.unique(patients, return_inverse=True)[1]; r, found = np.random.default_rng(0), []
    for _ in range(n):
        w = np.bincount(r.integers(0, codes.max() + 1, codes.max() + 1), minlength=codes.max() + 1)[codes]
        if w[y == 0].sum() and w[y == 1].sum(): found.append(np.mean([aca(y, g, w) for g in guesses]))
    return [float(v) for v in np.percentile(found, [2.5, 97.5])]


def phantoms(modality, positives, negatives, n, first):
    "n pictures, the two sides in turn, and their labels."
    eyes = [sample_eye(first + i, *((negatives, positives)[i % 2][i // 2 % len((negatives, positives)[i % 2])])) for i in range(n)]
    return as_input([draw(modality, e) for e in eyes]), torch.arange(n) % 2


def transfer(name, n=1200, steps=350, seeds=SEEDS, split=None) -> dict:
    "One two-way question: trained on phantoms, asked of real pictures."
    from sklearn.metrics import roc_auc_score
    modality, source, yes, no, positives, negatives, where = TASKS[name]
    where = where if split is None else split
    rows = [r for r in real_rows(modality=modality, source=source) if (yes(r) or no(r)) and where in ("", r["split"])]
    y, patients = np.array([int(yes(r)) for r in rows]), np.array([r["patient"] for r in rows])
    x_real = as_input([real_picture(r) for r in rows])
    bare = as_input([real_picture(r) for r in real_rows(modality=modality, source=source, split="train")])
    x, t = phantoms(modality, positives, negatives, n, 41_000_000)
    x_own, t_own = phantoms(modality, positives, negatives, 200, 42_000_000)
    plain, shifted, own = [], [], []
    for seed in seeds:
        model = train(x, t, steps, seed); own.append(aca(t_own.numpy(), scores(model, x_own) > .5)); plain.append(scores(model, x_real))
        shifted.append(scores(adapted(model, bare), x_real))
    out = dict(n=len(y), positives=int(y.sum()), patients=len(set(patients)), phantoms=round(float(np.mean(own)), 3))
    for key, found in (("", plain), ("adapted.", shifted)):
        guesses = [s > .5 for s in found]; low, high = interval(y, guesses, patients)
        out |= {key + "aca": round(float(np.mean([aca(y, g) for g in guesses])), 3), key + "low": round(low, 3), key + "high": round(high, 3),
                key + "sd": round(float(np.std([aca(y, g) for g in guesses])), 3), key + "auc": round(float(np.mean([roc_auc_score(y, s) for s in found])), 3)}
    return {f"{name.replace(' ', '_')}.{k}": v for k, v in out.items()}


def transfers(tasks, folder, **size) -> dict:
    "Every question's figures; those left in `folder` by the same code and size are kept, so a stopped study goes on where it was."
    code = "-".join([source_fingerprint(m)[:6] for m in ("fundus", "angiography", "oct")] + [hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:6], str(size)])
    values = {}
    for name in tasks:
        file = Path(folder) / f"{name.replace(' ', '_')}.json"; left = read_json(file, {})
        if left.get("code") != code:
            left = dict(code=code, found=transfer(name, **size)); file.parent.mkdir(parents=True, exist_ok=True); write_json(file, left)
            print("realism", left["found"], flush=True)
        values |= left["found"]
    return values


def measure(tasks=None, folder=None, **size) -> dict:
    "Effect sizes of colour and sharpness per modality, then every two-way question; empty without the real images."
    if not (real_folder() / "records.csv").exists():
        print("realism: no real images; set KEEPFIT_REAL to their folder. Part left out."); return {}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    values = {}
    for modality in ("CFP", "FFA", "OCT"): values |= compare(modality)
    return values | transfers(tasks or TASKS, folder or project_root() / "runs" / "study_realism", **size)


if __name__ == "__main__":
    for name, value in measure().items(): print(f"{name:70s} {value}")
