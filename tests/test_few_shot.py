"Chapter 16: support, prototypes, Tip-Adapter, intervals over draws."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from evaluation_bench import FakeModel, fake_run, make_bench

from keepfit_nb import few_shot as fs, zero_shot as zs
from keepfit_nb.evaluation import macro, score
from keepfit_nb.profiles import check_section, read_json, write_json


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 999))
def test_support_is_balanced_distinct_and_reproducible(c, k, d, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(c), k + 2))
    s = fs.draw_support(y, k, d, seed)
    assert s.shape == (d, c, k) and (s == fs.draw_support(y, k, d, seed)).all()
    for draw in s:
        assert len(set(draw.ravel().tolist())) == c * k and all((y[m] == i).all() for i, m in enumerate(draw))
    assert (fs.members(s, len(y)).sum(2) == k).all()


@pytest.mark.parametrize("y, words", [([0, 0, 1], "class 1 has only 1"), ([0, 0, 2, 2], "class 1 has only 0"), ([], "training rows")])
def test_too_few_training_rows(y, words):
    with pytest.raises(ValueError, match=words): fs.draw_support(np.array(y, dtype=int), 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.floats(0, 3), st.floats(.5, 9), st.integers(1, 4))
def test_vectorised_equals_loops(seed, alpha, beta, shots):
    rng = np.random.default_rng(seed); v, f, w = (zs.unit(rng.normal(size=(n, 5))) for n in (6, 15, 3))
    s = fs.draw_support(np.repeat([0, 1, 2], 5), shots, 3, seed)
    tip, near = fs.tip_adapter(v, w, f, s, 12, alpha, beta), fs.prototype_probs(v, f, s, 12)
    for d in range(3):
        for i in range(6):
            logits = [12 * v[i] @ w[c] + alpha * sum(np.exp(-beta * (1 - v[i] @ f[m])) for m in s[d, c]) for c in range(3)]
            assert np.allclose(tip[d, i], zs.softmax(logits), atol=1e-10)
            q = [f[s[d, c]].sum(0) for c in range(3)]
            assert np.allclose(near[d, i], zs.softmax([12 * v[i] @ x / np.linalg.norm(x) for x in q]), atol=1e-10)


def test_shares_keep_proportions_and_every_class():
    y = np.repeat([0, 1, 2], [40, 10, 1])
    for percent, sizes in ((1, [1, 1, 1]), (10, [4, 1, 1]), (50, [20, 5, 1]), (100, [40, 10, 1])):
        for draw in fs.draw_share(y, percent, 3, seed=2):
            assert [len(m) for m in draw] == sizes and all((y[m] == c).all() and len(set(m.tolist())) == len(m) for c, m in enumerate(draw))
    for percent in (0, -1, 101, float("nan")):
        with pytest.raises(ValueError, match="expected more than 0"): fs.draw_share(y, percent)
    with pytest.raises(ValueError, match="class 1 has no training row"): fs.draw_share(np.array([0, 2]), 10)
    probs = fs.prototype_probs(np.eye(3), np.eye(3)[y], fs.draw_share(y, 10, 2))          # supports of unequal classes
    assert probs.shape == (2, 3, 3) and (probs.argmax(2) == np.arange(3)).all()


def test_embeddings_that_do_not_fit_are_refused():
    v, f, s = np.eye(4), np.eye(4), fs.draw_support(np.array([0, 1, 2, 3]), 1)
    for g in (lambda v, f: fs.prototype_probs(v, f, s), lambda v, f: fs.tip_adapter(v, np.eye(4), f, s)):
        with pytest.raises(ValueError, match="one model"): g(v[:, :3], f)
        with pytest.raises(ValueError, match="diverge"): g(v, f * np.nan)


def test_one_draw_is_the_plain_interval_and_many_are_wider():
    rng = np.random.default_rng(0); y = np.repeat([0, 1], 40)
    p = rng.random((8, 80, 2)); p[::2, np.arange(80), y] += 1; p /= p.sum(-1, keepdims=True)       # good and bad supports in turn
    assert fs.score_draws(y, p[:1], 300)["ACA"] == pytest.approx(score(y, p[0], 300)["ACA"])
    value, low, high = fs.score_draws(y, p, 800)["ACA"]; _, a, b = fs.score_draws(y, p[:1], 800)["ACA"]
    assert high - low > 2 * (b - a) and low < value < high
    where = {i: str(k) for i, k in enumerate(y)}; rows = np.arange(80)
    assert fs.macro_draws([(rows, y, p[:1])], where, {}, n=100) == pytest.approx(macro([(rows, y, p[0])], where, {}, n=100))
    assert fs.macro_draws([(rows, y, p), (rows, y, p)], where, {}, n=160)[0] == pytest.approx(value)


def test_stage_on_a_bench(tmp_path, monkeypatch):
    bench_dir, zero = tmp_path / "14", tmp_path / "15"; bench = make_bench(bench_dir); monkeypatch.setattr(zs, "logit_scale", lambda m: 20.)
    (zero / "keepfit").mkdir(parents=True); np.savez(zero / "keepfit" / "0.npz", **zs.ask(bench, "keepfit", 0, FakeModel(), zs.Settings())[2])
    out = tmp_path / "16"; out.mkdir()
    wanted = fs.Settings(shots=[1, 5, 10], percents=[50], draws=4)
    got = fs.build(fake_run(tmp_path), out, wanted, {"14_evaluation": bench_dir, "15_zero_shot": zero})
    table = pd.read_parquet(out / "results.parquet")
    assert got["rows"] == len(table) and got["left_out"] == 1                      # six training rows a value: no ten shots
    assert set(table[table.model == "start"].protocol) == {f"{m}, unprojected{p}" for m in ("prototype", "ridge") for p in ("", ", 50 %")}
    coarse = table[(table.model == "keepfit") & (table.kind == "coarse")]; assert {m + p for m in fs.METHODS for p in ("", ", 50 %")} <= set(coarse.protocol)
    assert not set(fs.TRAINED) & set(table[table.kind == "fine"].protocol)                                    # unless asked for
    assert set(table[table.protocol.str.endswith("%")].shots) == {0} and (coarse[(coarse.metric == "ACA") & (coarse.shots == 5)].value > .7).all()
    aca = table[(table.metric == "ACA") & (table.task == "phantoms CFP diseases") & (table.model == "keepfit")].set_index(["protocol", "shots"]).value
    assert aca["Tip-Adapter", 5] > .8 and aca["prototype", 10] > .8 and aca["prototype", 10] >= aca["prototype", 1] - .05
    assert not table.duplicated(["model", "seed", "task", "protocol", "shots", "metric"]).any()
    assert table.task.str.startswith("macro").any()
    again = tmp_path / "again"; again.mkdir(); fs.build(fake_run(tmp_path), again, wanted, {"14_evaluation": bench_dir, "15_zero_shot": zero})
    assert table.equals(pd.read_parquet(again / "results.parquet"))


def test_a_task_brings_its_own_shots_and_seed(tmp_path):
    make_bench(tmp_path / "14"); about = read_json(tmp_path / "14" / "tasks.json"); wanted = fs.Settings(shots=[1, 5], draws=3, methods=["prototype", "Tip-Adapter"], kinds=["coarse"])
    def stage(name, task=None, seed=0):
        write_json(tmp_path / "14" / "tasks.json", about | dict(seed=seed, tasks=[about["tasks"][0] | (task or {})])); (out := tmp_path / name).mkdir()
        fs.build(fake_run(tmp_path), out, wanted, {"14_evaluation": tmp_path / "14", "15_zero_shot": tmp_path}); return pd.read_parquet(out / "results.parquet")
    value = lambda t: t[t.metric == "ACA"].groupby(["model", "protocol", "shots"]).value.first().to_dict()
    plain, own = stage("plain"), stage("own", dict(shots=[2, 3], seed=5)); assert set(plain.shots) == {1, 5} and set(own.shots) == {2, 3}
    assert value(own) == value(stage("later", dict(shots=[2, 3], seed=5), seed=1)) != value(stage("other", dict(shots=[2, 3], seed=6)))      # the declared seed, not the run's
    assert value(plain) != value(stage("another run", seed=1))


def test_settings():
    with pytest.raises(ValueError, match="did you mean 'shots'"): check_section({"shot": [1]}, fs.Settings, "section 'few_shot'")
    with pytest.raises(ValueError, match="beta"): check_section({"beta": 0}, fs.Settings, "section 'few_shot'")
