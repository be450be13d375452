"Several processes are one batch: value and gradient of two gloo processes against one, uneven batches, no group."
import os, subprocess, sys
from pathlib import Path

import pytest, torch

from keepfit_nb.processes import gather, gather_labels, world_size

SCRIPT = '''
import sys, torch, torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from keepfit_nb.contrastive import Temperature, clip_loss, share_targets, siglip_loss
from keepfit_nb.processes import gather, gather_labels
kind, sizes, rank, meet = sys.argv[1], [int(n) for n in sys.argv[2].split(",")], int(sys.argv[3]), sys.argv[4]
world = len(sizes)
if world > 1: dist.init_process_group("gloo", init_method="file://" + meet, rank=rank, world_size=world)
torch.manual_seed(0)
images, texts, labels = torch.randn(8, 6).double(), torch.randn(8, 6).double(), (torch.rand(8, 4) < .4).double()

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.t = torch.nn.Linear(6, 5).double(), torch.nn.Linear(6, 5).double(), Temperature(10., bias=-2.).double()
    def forward(self, x, y, c):
        v, w = gather(F.normalize(self.a(x), dim=1)), gather(F.normalize(self.b(y), dim=1))
        targets, s = share_targets(gather_labels(c)), self.t()
        return siglip_loss(v, w, targets, s, self.t.bias) if kind == "siglip" else clip_loss(v, w, targets, s) + 0 * self.t.bias

model = Two()
if world > 1: model = DistributedDataParallel(model)
mine = slice(sum(sizes[:rank]), sum(sizes[:rank + 1]))
loss = model(images[mine], texts[mine], labels[mine]); loss.backward()
if rank == 0: torch.save(dict(loss=loss.detach(), **{k.removeprefix("module."): p.grad for k, p in model.named_parameters()}), meet + ".out")
if world > 1: dist.barrier(); dist.destroy_process_group()
'''


def together(folder: Path, kind: str, sizes: list[int]):
    folder.mkdir(); (folder / "s.py").write_text(SCRIPT)
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    ps = [subprocess.Popen([sys.executable, str(folder / "s.py"), kind, ",".join(map(str, sizes)), str(r), str(folder / "meet")], env=env, stderr=subprocess.PIPE, text=True)
          for r in range(len(sizes))]
    errors = [p.communicate(timeout=120)[1] for p in ps]
    return [p.returncode for p in ps], errors, torch.load(folder / "meet.out", weights_only=True) if (folder / "meet.out").exists() else None


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_processes_equal_one(tmp_path, kind):
    codes, errors, two = together(tmp_path / "two", kind, [4, 4]); assert codes == [0, 0], errors
    codes, errors, one = together(tmp_path / "one", kind, [8]); assert codes == [0], errors
    for name, want in one.items():
        assert (two[name] - want).norm() <= 1e-9 * max(want.norm().item(), 1e-6), name


def test_uneven_batches_are_an_error_on_every_process(tmp_path):
    codes, errors, _ = together(tmp_path / "x", "clip", [5, 3])
    assert all(codes) and all("different sizes, [5, 3]" in e for e in errors)


def test_alone_nothing_happens():
    x = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1 and gather(x) is x and gather_labels(x) is x
