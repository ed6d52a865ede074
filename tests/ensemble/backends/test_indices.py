import pytest
import torch
from torch import nn

import ensemble
from ensemble import Gaussian, LowRank
from ensemble.backends import openvino
from ensemble.planning.optimize import Step
from tests.ensemble.planning.test_runner import as_if_fastest

pytestmark = pytest.mark.skipif(bool(openvino.missing(torch.device("cpu"))), reason="OpenVINO is not there")


class Tables(nn.Module):
    """Reads tables in each way that there is; ``by`` says which one is read at the inputs."""

    def __init__(self, by):
        super().__init__()
        self.by = by
        self.embedding = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 3)
        self.register_buffer("table", torch.randn(10, 4))

    def forward(self, x):
        if self.by == "embedding":
            read = self.embedding(x + 1)
        elif self.by == "buffer":
            read = self.table[x + 1]
        else:
            read = torch.gather(self.embedding.weight[:, 0].expand(x.shape[0], 10), 1, x + 1)[..., None]
        return self.linear(read.mean(1).expand(-1, 4))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request):
    # What a kernel refuses by itself is lost with one thread.
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("recipe", [Gaussian(scale=0.1), LowRank(scale=0.1)], ids=["dense", "factored"])
@pytest.mark.parametrize("by", ["embedding", "buffer", "gather"])
def test_an_index_beyond_its_table_is_refused_as_it_is_without_compiling(by, recipe, workshop):
    x = torch.randint(0, 9, (3, 5))
    ens = ensemble.perturb(Tables(by).eval(), recipe, members=4, example=x)
    ens.measure((3,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("openvino", 3, 2, "float32"), workshop))
    torch.testing.assert_close(ens(x), ens.loop(x), rtol=1e-4, atol=1e-5)
    for bad in (9, 1000, -20, 2**32):
        wrong = x.clone()
        wrong[1, 2] = bad
        errors = []
        for chunk in (None, 4):
            with pytest.raises((IndexError, RuntimeError)) as caught:
                ens(wrong, chunk=chunk)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    torch.testing.assert_close(ens(x), ens.loop(x), rtol=1e-4, atol=1e-5)


class Ages(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear((x // 2**20).float())


def test_numbers_beyond_32_bits_are_what_they_are(workshop):
    x = torch.randint(0, 2**30, (2, 2))
    ens = ensemble.perturb(Ages().eval(), Gaussian(scale=0.1), members=3, example=x)
    ens.measure((2,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("openvino", 2, 3, "float32"), workshop))
    later = x + 2**40
    torch.testing.assert_close(ens(later), ens.loop(later))
