"Chapter 14.4: files of embeddings in blocks, killed writers, search against the whole matrix."
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from keepfit_nb.embeddings import EmbeddingWriter, Embeddings, embed, embedded, save_embeddings


def some(n=100, d=5, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return {"rows": np.arange(n) * 2, "projected": x / np.linalg.norm(x, axis=1, keepdims=True), "unprojected": np.hstack([x, x])}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 9), st.sampled_from([0, 2**28]))
def test_any_block_and_group_gives_the_same(tmp_path_factory, n, group, block, keep):
    a = some(n); path = tmp_path_factory.mktemp("e") / "0.parquet"
    with EmbeddingWriter(path, "abc", group) as f:
        for i in range(0, n, block): f.add({k: v[i:i + block] for k, v in a.items()})
    e = Embeddings(path, keep); ask = np.random.default_rng(n).permutation(a["rows"])[: n // 2 + 1]
    assert len(e) == n and e.fingerprint == "abc" and [m for m in np.diff(e.starts)[:-1] if m != group] == []
    for kind in ("projected", "unprojected"): assert (e.of(ask, kind) == a[kind][ask // 2]).all()
    assert e.of(np.array([], int)).shape == (0, 5)


@pytest.mark.parametrize("keep", [0, 2**28])
def test_search_equals_the_whole_matrix(tmp_path, keep):
    a = some(300, 8); e = Embeddings(save_embeddings(tmp_path / "0.parquet", a, "f", 37), keep); q = a["projected"][[5, 17, 250]]
    rows, near = e.search(q, 12); s = q @ a["projected"].T; order = np.argsort(-s, 1, kind="stable")[:, :12]
    assert (rows == a["rows"][order]).all() and np.allclose(near, np.take_along_axis(s, order, 1)) and e.search(q[0], 999)[0].shape == (1, 300)
    with pytest.raises(ValueError, match="from one model"): e.search(q[:, :4])
    with pytest.raises(ValueError, match="NaN"): e.search(q * np.nan)
    with pytest.raises(KeyError, match="did you mean 'unprojected'"): e.search(q, kind="unprojekted")


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = save_embeddings(tmp_path / "0.parquet", some(), "old")
    with pytest.raises(RuntimeError):
        with EmbeddingWriter(path, "new", 8) as f: f.add(some(20)); raise RuntimeError("the power went")
    assert Embeddings(path).fingerprint == "old" and [p.name for p in tmp_path.iterdir()] == ["0.parquet"]


def test_wrong_blocks_are_refused(tmp_path):
    a = some(20)
    for second, words in ((a, "rows must rise"), ({**some(20, 6), "rows": a["rows"] + 100}, "other dimensions"), ({"rows": np.array([200, 199]), "projected": a["projected"][:2]}, "rows must rise")):
        with pytest.raises(ValueError, match=words):
            with EmbeddingWriter(tmp_path / "x.parquet", "f", 8) as f: f.add(a); f.add(second)
    with pytest.raises(ValueError, match="nothing to embed"):
        with EmbeddingWriter(tmp_path / "x.parquet", "f") as f: f.add({"rows": np.array([], int), "projected": np.empty((0, 3))})
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_embeddings(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="run chapter 14 again"): Embeddings(tmp_path / "a.parquet")
    import pandas as pd
    pd.DataFrame({"row": [1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no fingerprint"): Embeddings(tmp_path / "b.parquet")


def test_any_tool_reads_it(tmp_path):
    t = pq.read_table(save_embeddings(tmp_path / "0.parquet", some(10), "f")); a = some(10)
    assert t.column_names == ["row", "projected", "unprojected"] and np.allclose(t["projected"].to_pylist(), a["projected"])


def test_nan_features_name_their_row():
    import torch
    class Cache:
        def batch(self, rows): return torch.as_tensor(np.asarray(rows))[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8)
    encode = lambda x: (None, torch.where(x.float().mean((2, 3)) == 5, torch.nan, x.float().mean((2, 3))))
    with pytest.raises(ValueError, match="row 5"): embed(encode, Cache(), np.array([3, 5, 8]))
    assert sum(len(b["rows"]) for b in embedded(encode, Cache(), np.array([1, 2, 3]), 2)) == 3 and len(embed(encode, Cache(), np.array([], int))["rows"]) == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    "Ten times the rows, in a process of its own: the memory of its own grows by the row numbers, not by the vectors."
    import json, subprocess, sys
    import evaluation as bench
    if sys.platform != "linux": pytest.skip("reads /proc")
    small, big = (json.loads(subprocess.run([sys.executable, "-c", bench.WORK, str(n)], capture_output=True, text=True, check=True).stdout) for n in (20_000, 200_000))
    assert big["file"] > 9 * small["file"] and big["anon"] - small["anon"] < .3 * (big["file"] - small["file"])
