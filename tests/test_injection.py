"The injection as a whole: against loops, gradients, modalities, memory, every switch, odd batches."
import pytest, torch
from pydantic import ValidationError
from torch.nn import functional as F

from keepfit_nb.appearance import patch_similarity
from keepfit_nb.contrastive import clip_loss
from keepfit_nb.injection import Injection, Settings, sharpened
from keepfit_nb.references import attention_shares, masked_softmax, standardise, toy_world

P, N, D = 12, 4, 5


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def batch(public=8, elite=6, modalities=2, dtype=torch.float64):
    ids, leaf = torch.arange(elite), lambda *a, **k: unit(*a, dtype=dtype, **k).requires_grad_()
    return (dict(image=leaf(public, P, seed=1), text=leaf(public, P, seed=2), modality=torch.arange(public) % modalities, patches=leaf(public, N, D, seed=5)),
            dict(image=leaf(elite, P, seed=3), text=leaf(elite, P, seed=4), modality=ids % modalities, index=ids, patches=leaf(elite, N, D, seed=6)))


def make(dtype=torch.float64, **settings):
    inj = Injection(P, Settings(**dict(loss="infonce", leave_one_out="clip") | settings), patch_dim=D, patches=N).to(dtype)
    with torch.no_grad():
        for k, w in enumerate(inj.parameters()): w += .1 * unit(*(w.shape or (1,)), seed=50 + k, dtype=dtype).reshape(w.shape)
    return inj


def semantic(inj, q, k, allowed): return attention_shares(inj.semantic.query(q), inj.semantic.key(k), inj.semantic.scale(), inj.settings.heads, allowed)
def appearance(inj, q, k, allowed):
    lens = lambda x: F.normalize(inj.appearance.lens(x), dim=-1)
    return masked_softmax(inj.appearance.scale() * standardise(patch_similarity(lens(q), lens(k)), allowed), allowed)


@pytest.mark.parametrize("pull", ["text", "image", "both"])
@pytest.mark.parametrize("loss", ["mse", "infonce", "lean"])
@pytest.mark.parametrize("parts", [dict(), dict(appearance=True), dict(semantic=False, appearance=True)], ids=["semantic", "both", "appearance"])
def test_whom_it_pulls(pull, loss, parts):
    inj, (p, e) = make(pull=pull, loss=loss, **parts), batch()
    out = inj(p, e); (out["reference"] + out["leave_one_out"]).backward()
    assert all(e[k].grad is None for k in ("image", "text", "patches")) and p["patches"].grad is None      # experts stand still
    assert (p["text"].grad is not None) == (pull in ("text", "both"))
    assert p["image"].grad is not None or (pull == "text" and (loss != "mse" or "semantic" in parts))
    assert all(w.grad is not None for w in inj.parameters())


@pytest.mark.parametrize("teach", ["clip", "match"])
def test_leave_one_out_alone_teaches_every_part(teach):
    inj, (p, e) = make(appearance=True, leave_one_out=teach), batch()
    inj(p, e)["leave_one_out"].backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in inj.parameters())
    assert p["image"].grad is None and p["text"].grad is None


def test_mse_against_loops():
    inj, (p, e) = make(pull="text", loss="mse"), batch()
    A = semantic(inj, p["image"], e["image"], p["modality"][:, None] == e["modality"])
    want = sum((p["text"][i] - F.normalize(sum(A[i, j] * e["text"][j] for j in range(6)), dim=0)).square().sum() for i in range(8)) / 8
    assert torch.allclose(inj(p, e)["reference"], want, atol=1e-12)


@pytest.mark.parametrize("keys", ["image", "text", "both"])
@pytest.mark.parametrize("candidates", ["kin", "modality"])
@pytest.mark.parametrize("confidence", ["none", "max"])
def test_infonce_against_loops(keys, candidates, confidence):
    inj, (p, e) = make(keys=keys, candidates=candidates, sharpen=3., confidence=confidence, appearance=True, gate=.3), batch()
    kin = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < .6; kin[2] = False
    same = p["modality"][:, None] == e["modality"]
    look = dict(image=e["image"], text=e["text"], both=F.normalize(e["image"] + e["text"], dim=1))[keys]
    A = .3 * semantic(inj, p["image"], look, same & kin) + .7 * appearance(inj, p["patches"], e["patches"], same & kin)
    total, used = 0., 0
    for i in range(8):
        open_ = [j for j in range(6) if same[i, j] and kin[i, j]]
        if not open_: continue
        used += 1
        among = open_ if candidates == "kin" else [j for j in range(6) if same[i, j]]
        log_p = dict(zip(among, (14. * torch.stack([p["image"][i] @ e["text"][j] for j in among])).log_softmax(0)))
        q = torch.stack([A[i, j] ** 3 for j in open_]); q = q / q.sum()
        weight = 1. if confidence == "none" else A[i].max()
        total -= weight * sum(q[k] * log_p[j] for k, j in enumerate(open_))
    assert torch.allclose(inj(p, e, kin, 14.)["reference"], total / used, atol=1e-9)


def test_both_ways_reads_the_columns_too():
    (p, e), kin = batch(), torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < .6
    inj, same = make(both_ways=True), p["modality"][:, None] == e["modality"]
    allowed = same & kin; A = semantic(inj, p["image"], e["image"], allowed).detach()
    S, total = 14. * p["image"] @ e["text"].T, 0.
    for i in range(8):
        for j in range(6):
            if not allowed[i, j]: continue
            row, column = (torch.stack([S[i, k] for k in range(6) if allowed[i, k]]), torch.stack([S[k, j] for k in range(8) if allowed[k, j]]))
            total -= A[i, j] * (2 * S[i, j] - row.logsumexp(0) - column.logsumexp(0)) / 2
    assert torch.allclose(inj(p, e, kin, 14.)["reference"], total / allowed.any(1).sum(), atol=1e-9)


def test_lean_is_infonce_less_its_even_part():
    inj, (p, e) = make(loss="lean"), batch()
    allowed = p["modality"][:, None] == e["modality"]
    A = semantic(inj, p["image"], e["image"], allowed).detach()
    logits = (14. * p["image"] @ e["text"].T).masked_fill(~allowed, -1e9).log_softmax(1)
    want = -((A - allowed / allowed.sum(1, keepdim=True)) * logits.masked_fill(~allowed, 0.)).sum(1).mean()
    assert torch.allclose(inj(p, e, scale=14.)["reference"], want, atol=1e-9)
    same = {k: v.detach()[:1].expand(6, *v.shape[1:]) if k in ("image", "patches") else v for k, v in e.items()}
    assert inj(p, same | dict(modality=e["modality"] * 0), scale=14.)["reference"].abs() < 1e-9      # all experts look alike: nothing to lean to


@pytest.mark.parametrize("teach", ["clip", "match"])
def test_leave_one_out_never_sees_itself(teach):
    inj, (p, e) = make(leave_one_out=teach), batch(modalities=1)
    def want(e):
        allowed = e["index"][:, None] != e["index"]
        A = semantic(inj, e["image"], e["image"], allowed)
        if teach == "clip": return clip_loss(F.normalize(A @ e["text"], dim=1), e["text"], None, inj.semantic.scale())
        goal = masked_softmax(9. * e["text"] @ e["text"].T, allowed)
        return -sum(goal[i, j] * A[i, j].log() for i in range(len(A)) for j in range(len(A)) if allowed[i, j]) / len(A)
    assert torch.allclose(inj(p, e, scale=9.)["leave_one_out"], want(e), atol=1e-6)
    twice = {k: torch.cat([v, v]) for k, v in e.items()}                         # a pair drawn twice does not answer for its twin
    assert torch.allclose(inj(p, twice, scale=9.)["leave_one_out"], want(twice), atol=1e-6)


def test_another_view_may_ask():
    inj, (p, e) = make(), batch()
    plain = inj(p, e)["reference"]
    assert torch.equal(inj(p | dict(query=p["image"]), e)["reference"], plain)
    other = p | dict(query=unit(8, P, seed=9).requires_grad_())
    out = inj(other, e)["reference"]; out.backward()
    assert not torch.allclose(out, plain) and other["query"].grad is None and p["image"].grad is not None


def test_modality_without_elite_and_single_pairs():
    p, e = batch(); p["modality"] = torch.full((8,), 2)
    out = make(appearance=True)(p, e)
    assert out["reference"] == 0 and torch.isfinite(out["leave_one_out"])
    p, e = batch(elite=1, modalities=1)
    for teach in ("clip", "match"):
        out = make(appearance=True, leave_one_out=teach)(p, e)
        assert torch.isfinite(out["reference"]) and out["leave_one_out"] == 0    # nobody else to ask
        (out["reference"] + out["leave_one_out"]).backward()
    assert all(torch.isfinite(v).all() for v in (p["image"].grad,))


@pytest.mark.parametrize("public, elite", [(0, 4), (4, 0), (0, 0), (1, 1)])
def test_empty_and_tiny_bundles(public, elite):
    p, e = batch(public, elite)
    inj = make(appearance=True, memory=8)
    for _ in range(2):
        out = inj(p, e); assert all(torch.isfinite(v) for v in out.values())
        (out["reference"] + out["leave_one_out"]).backward()
    assert torch.isfinite(inj.skill)


def test_other_modalities_do_not_matter():
    inj, (p, e) = make(appearance=True), batch()
    p["modality"] = p["modality"] * 0
    before = inj(p, e)["reference"]
    for k, s in (("image", 11), ("text", 12)): e[k] = torch.where(e["modality"][:, None] == 1, unit(6, P, seed=s), e[k].detach())
    assert torch.equal(inj(p, e)["reference"], before)


def test_memory_serves_as_further_keys():
    inj, (p, e) = make(memory=16, appearance=True), batch()
    first, second = ({k: v[s] for k, v in e.items()} for s in (slice(0, 3), slice(3, 6)))
    inj(p, first)
    keys = inj._keys(second)
    assert len(keys["image"]) == 3 + 16 and sorted(keys["index"][keys["modality"] >= 0].tolist()) == [0, 1, 2, 3, 4, 5]
    joined = make(appearance=True); joined.load_state_dict({k: v for k, v in inj.state_dict().items() if not k.startswith("memory")})
    assert torch.allclose(inj.eval()(p, second)["reference"], joined(p, e)["reference"], atol=1e-6)     # the memory is in float32
    assert sorted(inj.memory.index[inj.memory.index >= 0].tolist()) == [0, 1, 2]                        # evaluation writes nothing
    again = inj._keys(first); assert (again["modality"][3:] >= 0).sum() == 0                            # older selves are out


def test_everything_is_saved():
    inj, (p, e) = make(memory=16, appearance=True), batch()
    inj(p, e)
    other = Injection(P, inj.settings, D, N).double(); other.load_state_dict(inj.state_dict())
    assert torch.equal(other.eval()(p, e)["reference"], inj.eval()(p, e)["reference"]) and torch.equal(other.skill, inj.skill)


def test_pull_waits_for_skill():
    inj, (p, e) = make(start_skill=.5), batch()
    assert inj(p, e)["reference"] == 0
    inj.skill.fill_(.9); assert inj(p, e)["reference"] > 0


def test_skill_tells_sense_from_noise():
    world = toy_world(80, seed=1) | dict(modality=torch.zeros(80, dtype=torch.long), index=torch.arange(80))
    skill = {}
    for name, order in (("paired", torch.arange(80)), ("shuffled", torch.randperm(80, generator=torch.Generator().manual_seed(0)))):
        inj = Injection(24); elite = world | dict(text=world["text"][order])
        for _ in range(60): inj(world, elite)
        skill[name] = inj.skill.item()
    assert skill["paired"] > .3 > .1 > skill["shuffled"]


def test_learned_gate_beats_one_half():
    "One reference is informative for some eyes only; leave-one-out alone must find out for which."
    def teach(**kw):
        torch.manual_seed(0)
        inj = Injection(24, Settings(appearance=True, leave_one_out="match", **kw), patch_dim=16)
        opt = torch.optim.AdamW(inj.parameters(), lr=1e-2)
        for step in range(80):
            now = toy_world(60, seed=1000 + step) | dict(modality=torch.zeros(60, dtype=torch.long), index=torch.arange(60))
            now["kin"] = now["disease"][:, None] == now["disease"]
            loss = inj(now, now, now["kin"])["leave_one_out"]; opt.zero_grad(); loss.backward(); opt.step()
        public, elite = toy_world(100, seed=1), toy_world(100, seed=2) | dict(modality=torch.zeros(100, dtype=torch.long), index=torch.arange(100))
        kin = public["disease"][:, None] == elite["disease"]
        with torch.no_grad(): A, gate = inj.shares(public["image"], inj._keys(elite), kin, public["patches"])
        return (A * (kin & (public["detail"][:, None] == elite["detail"]))).sum(1).mean().item(), [gate[public["disease"] == k].mean().item() for k in range(3)]
    learned, gates = teach(); half, _ = teach(gate=.5)
    assert learned > half + .05 and gates[0] > .6 > .4 > gates[2]         # the whole image for disease 0, the patches for disease 2


@pytest.mark.parametrize("bad, word", [(dict(pull="imge"), "pull"), (dict(loss="mce"), "loss"), (dict(semantic=False), "nothing to refer to"),
    (dict(gate=2.), "in .0, 1."), (dict(gates=.5), "gates"), (dict(sharpen=0.), "sharpen")])
def test_wrong_settings(bad, word):
    with pytest.raises(ValidationError, match=word): Settings(**bad)


def test_missing_patches_are_named():
    with pytest.raises(ValueError, match="patch_dim"): Injection(P, Settings(appearance=True))
    with pytest.raises(ValueError, match="their number"): Injection(P, Settings(appearance=True, memory=4), patch_dim=D)
    with pytest.raises(ValueError, match="do not divide"): Injection(P, Settings(heads=5))
    p, e = batch(); p.pop("patches")
    with pytest.raises(ValueError, match="needs `patches`"): make(appearance=True)(p, e)


def test_bf16_is_computed_wide():
    inj, (p, e) = make(torch.float32, appearance=True, memory=8), batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16): out = inj(p, e)
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in out.values())
    half = lambda d: {k: v.bfloat16() if v.is_floating_point() else v for k, v in d.items()}
    assert torch.isfinite(inj(half(p), half(e))["reference"])


def test_gradcheck():
    inj, (p, e) = make(appearance=True), batch(4, 4)
    def run(*weights):
        out = torch.func.functional_call(inj.eval(), dict(zip(names, weights)), (p, e))
        return out["leave_one_out"]
    names, weights = zip(*[(k, w) for k, w in inj.named_parameters() if "log_scale" not in k and "lens" not in k])
    assert torch.autograd.gradcheck(run, weights, atol=1e-6)


def test_sharpened():
    A = torch.tensor([[.5, .3, .2], [0., 0., 0.]])
    assert torch.equal(sharpened(A, 1.), A) and torch.allclose(sharpened(A, 20.)[0], torch.tensor([1., 0., 0.]), atol=1e-3)
    assert sharpened(A, 2.)[1].abs().sum() == 0
