import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import ensemble
from ensemble import LowRank
from ensemble.backends import folding, openvino, thin
from ensemble.backends.graphs import is_functional
from ensemble.backends.tracing import trace

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("left", "common"),
    [
        (lambda x: x.expand(4, 3, 5), True),
        (lambda x: x.expand(4, 3, 5).reshape(4, 3, 5), True),
        (lambda x: x[None].expand(4, 3, 5), True),
        # The members' own, though of as many numbers: (4, 5) is expanded along the rows of each.
        (lambda x: torch.cat([x, x[:1]])[:, None].expand(4, 3, 5), False),
        (lambda x: torch.stack([x, 2 * x, 3 * x, 4 * x]), False),
        (lambda x: torch.stack([x, 2 * x, 3 * x, 4 * x]).expand(4, 3, 5), False),
        # Twelve batches of one row: four times three others.
        (lambda x: x.expand(4, 3, 5).reshape(12, 1, 5), False),
        (lambda x: x[:1].expand(12, 5).reshape(4, 3, 5), False),
    ],
)  # fmt: skip
def test_what_members_have_in_common_is_multiplied_with_all_their_vectors_at_once(left, common):
    x, right = torch.randn(3, 5), torch.randn(12, 5, 1)

    def multiply(x, right):
        batch = left(x)
        return torch.bmm(batch, right[: len(batch)])

    traced = make_fx(multiply, tracing_mode="fake")(x, right)
    thin.products(traced)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert (aten.mm.default in targets) == common
    assert aten.bmm.default not in targets
    got = traced(x, right)
    torch.testing.assert_close(got, multiply(x, right))
    assert got.is_contiguous()


def test_a_thin_product_of_a_thin_product_is_rewritten_too():
    a, b, c = torch.randn(4, 3, 5), torch.randn(4, 5, 1), torch.randn(4, 1, 6)

    def multiply(a, b, c):
        return torch.bmm(torch.bmm(a, b).view(4, 3, 1), c)

    traced = make_fx(multiply, tracing_mode="fake")(a, b, c)
    thin.products(traced)
    assert not traced.graph.find_nodes(op="call_function", target=aten.bmm.default)
    torch.testing.assert_close(traced(a, b, c), multiply(a, b, c))


def traced_members(model, x, members=3, rows=2):
    """What OpenVINO would be given for rank-1 members, and what it would be given with."""
    ens = ensemble.perturb(model.eval(), LowRank(scale=0.3), members=members, example=x)
    inputs = ens.example(rows)
    job = ens._runner.job("openvino", inputs, members)
    traced, _ = trace(job)
    weights = ens._runner.members
    own = [weights.stacked[spec.name] for spec in job.own]
    return traced, [*(weights.shared[spec.name] for spec in job.shared), *own, *inputs]


def shapes_of(traced, target):
    return [tuple(node.meta["val"].shape) for node in traced.graph.find_nodes(op="call_function", target=target)]


def grouped(traced):
    nodes = traced.graph.find_nodes(op="call_function", target=aten.convolution.default)
    return [node for node in nodes if node.args[8] > 1]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(12, 5, 3, padding=1), (6,)),
        (nn.Conv2d(12, 5, 3, padding=1), (6, 7)),
        (nn.Conv2d(12, 5, (3, 2), stride=2, dilation=(2, 1), padding=(1, 0)), (9, 8)),
        (nn.Conv2d(12, 5, 3, padding="same", bias=False), (5, 5)),
        (nn.Conv3d(12, 5, (1, 2, 3), padding=1), (4, 3, 5)),
    ],
    ids=str,
)
def test_a_convolution_with_a_members_own_thin_kernel_is_a_product_and_a_sum_of_taps(layer, shape):
    first = type(layer)(2, 12, 1)
    traced, given = traced_members(nn.Sequential(first, nn.Tanh(), layer, nn.Tanh()), torch.randn(2, 2, *shape))
    want = traced(*given)
    assert len(grouped(traced)) == 1
    thin.convolutions(traced)
    assert not grouped(traced)
    torch.testing.assert_close(traced(*given), want)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(12, 4, 3, padding=1, groups=2),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.ConvTranspose2d(12, 5, 3),
        # More taps than products are worth, and more points that are passed over.
        nn.Conv2d(12, 5, 5),
        nn.Conv2d(12, 5, 1),
        nn.Conv2d(12, 5, 3, stride=3),
    ],
    ids=str,
)
def test_other_convolutions_stay_what_they_are(layer):
    traced, given = traced_members(nn.Sequential(nn.Conv2d(2, 12, 1), nn.Tanh(), layer), torch.randn(2, 2, 6, 6))
    want, before = traced(*given), len(grouped(traced))
    thin.convolutions(traced)
    assert len(grouped(traced)) == before > 0
    torch.testing.assert_close(traced(*given), want)


class Residual(nn.Module):
    """Two convolutions around which the input goes past, squeezed and excited."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(6)
        self.gate = nn.Linear(6, 6)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        y = torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        y = self.third(nn.functional.gelu(self.second(x)) * y) + 2 * x
        return y.clamp(-1, 1) - x.amax((1, 2, 3), keepdim=True)


def test_between_convolutions_members_stand_in_the_batch():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    # One row, and as many rows as members, mix nothing up.
    for rows in (1, 3, 4):
        traced, given = traced_members(model, torch.randn(2, 2, 9, 9), members=3, rows=rows)
        want = traced(*given)
        assert shapes_of(traced, aten.relu.default) == [(3, rows, 4, 5, 5)]
        openvino.rewrite(traced, 3)
        assert shapes_of(traced, aten.relu.default) == [(3 * rows, 4, 5, 5)]
        torch.testing.assert_close(traced(*given), want)


@pytest.mark.parametrize(("members", "rows"), [(1, 4), (3, 1), (3, 3), (4, 2)])
def test_at_any_depth(members, rows):
    """Also where two convolutions read one value, and where members' own numbers come in by a concatenation."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3))
            self.first, self.last, self.beside = (
                nn.Conv2d(2, 12, 3),
                nn.Conv2d(24, 5, 3),
                nn.Conv2d(12, 12, 3, padding=1),
            )

        def forward(self, x):
            x = torch.relu(self.first(x.permute(0, -3, -1, -2)))
            for layer in self.layers:
                x = torch.relu(layer(x)) + x
            return self.last(torch.cat([x, torch.tanh(self.beside(x))], 1))

    traced, given = traced_members(Deep(), torch.randn(2, 2, 8, 9), members=members, rows=rows)
    want = traced(*given)
    openvino.rewrite(traced, members)
    thin.products(traced)
    assert members == 1 or not grouped(traced)
    got = torch.export.export(traced, tuple(given)).module()(*given)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_goes_past_a_convolution_or_comes_from_a_members_own_numbers_is_added_where_it_belongs():
    for rows in (1, 3, 5):
        traced, given = traced_members(Residual(), torch.randn(2, 6, 6, 6), members=5, rows=rows)
        want = traced(*given)
        openvino.rewrite(traced, 5)
        assert (5 * rows, 6, 6, 6) in shapes_of(traced, aten.gelu.default)
        torch.testing.assert_close(traced(*given), want)


def test_a_permutation_from_behind_is_none_that_changes_nothing():
    def turned(x):
        return x.permute(-1, 0, 1).permute(0, 1, 2).permute(-3, -2, -1) + 1

    x = torch.randn(2, 3, 4)
    traced = make_fx(turned, tracing_mode="fake")(x)
    folding.fold(traced, 2)
    assert len(traced.graph.find_nodes(op="call_function", target=aten.permute.default)) == 1
    torch.testing.assert_close(traced(x), turned(x))


def test_products_without_space_keep_their_members():
    traced, given = traced_members(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4))
    want = traced(*given)
    folding.fold(traced, 3)
    assert shapes_of(traced, aten.relu.default) == [(3, 2, 5)]
    torch.testing.assert_close(traced(*given), want)


def test_what_writes_into_a_value_is_told():
    def adds(x):
        return x.clone().add_(1)

    def functional(x):
        return x.clone() + 1

    x = torch.randn(2, 3)
    assert not is_functional(make_fx(adds, tracing_mode="fake")(x))
    assert is_functional(make_fx(functional, tracing_mode="fake")(x))
