"Several processes are one batch: value and gradient of two gloo processes against one, uneven batches, no group."
import os, runpy, subprocess, sys
from pathlib import Path

import pytest, torch

from keepfit_nb.processes import gather, gather_labels, world_size

SCRIPT = '''
import sys, torch, torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from keepfit_nb.contrastive import Temperature, clip_loss, share_targets, siglip_loss
from keepfit_nb.processes import gather, gather_labels

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.t = torch.nn.Linear(6, 5).double(), torch.nn.Linear(6, 5).double(), Temperature(10., bias=-2.).double()
    def forward(self, kind, x, y, c):
        v, w = gather(F.normalize(self.a(x), dim=1)), gather(F.normalize(self.b(y), dim=1))
        targets, s = share_targets(gather_labels(c)), self.t()
        return siglip_loss(v, w, targets, s, self.t.bias) if kind == "siglip" else clip_loss(v, w, targets, s) + 0 * self.t.bias

def measure(kind, sizes=(8,), rank=0):
    torch.manual_seed(0)
    rows = torch.randn(8, 6).double(), torch.randn(8, 6).double(), (torch.rand(8, 4) < .4).double()
    model = Two() if len(sizes) == 1 else DistributedDataParallel(Two())
    mine = slice(sum(sizes[:rank]), sum(sizes[:rank + 1]))
    loss = model(kind, *(x[mine] for x in rows)); loss.backward()
    return dict(loss=loss.detach(), **{k.removeprefix("module."): p.grad for k, p in model.named_parameters()})

if __name__ == "__main__":
    rank, meet = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method="file://" + meet, rank=rank, world_size=2)
    found = {kind: measure(kind, (4, 4), rank) for kind in ("clip", "siglip")}
    if rank == 0: torch.save(found, meet + ".out")
    try: measure("clip", (5, 3), rank)
    except ValueError as error: open(meet + f".error{rank}", "w").write(str(error))
    dist.barrier(); dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    "What two processes leave: loss and gradients of even batches, their complaints about uneven ones. Started once, since starting is what costs."
    folder = tmp_path_factory.mktemp("two"); (folder / "s.py").write_text(SCRIPT)
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    ps = [subprocess.Popen([sys.executable, str(folder / "s.py"), str(r), str(folder / "meet")], env=env, stderr=subprocess.PIPE, text=True) for r in range(2)]
    errors = [p.communicate(timeout=120)[1] for p in ps]
    assert [p.returncode for p in ps] == [0, 0], errors
    return folder


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_processes_equal_one(two, kind):
    found, one = torch.load(two / "meet.out", weights_only=True)[kind], runpy.run_path(str(two / "s.py"))["measure"](kind)
    assert found.keys() == one.keys()
    for name, want in one.items():
        assert (found[name] - want).norm() <= 1e-9 * max(want.norm().item(), 1e-6), name


def test_uneven_batches_are_an_error_on_every_process(two):
    assert all("different sizes, [5, 3]" in (two / f"meet.error{r}").read_text() for r in range(2))


def test_alone_nothing_happens():
    x = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1 and gather(x) is x and gather_labels(x) is x
