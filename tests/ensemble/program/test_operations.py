import operator

import pytest
import torch

from ensemble import ArtifactError, ModelError
from ensemble.program.operations import operation, operation_name


def every():
    """Every operator that is registered under aten, TorchScript's among them."""
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::"):
            packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"), None)
            found = getattr(packet, schema.overload_name or "default", None)
            if isinstance(found, torch._ops.OpOverload):
                yield found


def allowed():
    for op in every():
        try:
            operation(str(op))
        except ArtifactError:
            continue
        yield op


ALLOWED = {str(op): op for op in allowed()}


def test_what_is_allowed_has_no_effect_and_gives_tensors_or_sizes():
    assert 500 < len(ALLOWED) < 2000
    for name, op in ALLOWED.items():
        assert not op._schema.is_mutable
        assert torch.Tag.nondeterministic_seeded not in op.tags
        assert torch.Tag.data_dependent_output not in op.tags
        kinds = {str(result.type) for result in op._schema.returns}
        assert kinds <= {"Tensor", "List[Tensor]"} or name.startswith("aten.sym_")
        assert kinds


@pytest.mark.parametrize(
    "word",
    ["rand", "seed", "bernoulli", "poisson", "multinomial", "from_file", "save", "print", "pin_memory", "backward",
     "set_grad", "empty", "_test", "_debug", "cuda", "cudnn", "mkldnn", "fbgemm", "_cufft", "warn", "record", "resize",
     "copy_", "nested", "source_storage", "stream", "_make_dep", "foobar", "quantize", "sparse", "nonzero", "rename"],
)  # fmt: skip
def test_nothing_of_that_kind_is_allowed(word):
    harmless = {"aten.count_nonzero.default", "aten.count_nonzero.dim_IntList", "aten.poisson_nll_loss.default"}
    assert not {name for name in ALLOWED if word in name.lower()} - harmless


def test_arguments_are_what_a_graph_can_write():
    for name, op in ALLOWED.items():
        for argument in op._schema.arguments:
            kind = str(argument.type)
            for part in ("Optional", "List", "[", "]"):
                kind = kind.replace(part, "")
            optional = argument.has_default_value() or str(argument.type).startswith("Optional")
            assert kind in {"Tensor", "number", "int", "float", "bool", "str"} or (kind == "Device" and optional), name


def test_core_operators_are_allowed_but_those_that_draw_or_look_at_values():
    missing = {str(op) for op in every() if torch.Tag.core in op.tags and not op._schema.is_mutable} - set(ALLOWED)
    words = (
        "rand",
        "dropout",
        "nonzero",
        "empty",
        "_local_scalar",
        "masked_select",
        "backward",
        "resize",
        "contiguous",
    )
    assert not {name for name in missing if not any(word in name for word in words)}


REFUSED = [
    "os.system", "torch.hub.load", "torch.load", "builtins.eval", "eval", "__import__", "operator.methodcaller",
    "operator.attrgetter", "operator.call", "operator.concat", "operator.pow", "operator.lshift", "operator.setitem",
    "operator.iadd", "torch.sym_ite", "torch.ops.aten.add.Tensor", "aten.add", "aten", "aten..", "aten.add.Tensor.x",
    "aten.add.__call__", "aten.add.__class__", "aten.__class__.__init__", "aten.__dict__.x", "aten.add._schema",
    "aten.from_file.default", "aten.save.default", "aten.manual_seed.default", "aten.set_grad_enabled.default",
    "aten._print.default", "aten._cufft_set_plan_cache_max_size.default", "aten.mul.left_t", "aten.pow.int_to_int",
    "aten.factorial.int", "aten.zfill.default", "aten.list.default", "aten.add_.Tensor", "aten.copy_.default",
    "aten.resize_.default", "aten.set_.source_Storage", "aten.rand.default", "aten.bernoulli.default",
    "aten.native_dropout.default", "aten.item.default", "aten._local_scalar_dense.default", "aten.nonzero.default",
    "aten.masked_select.default", "aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default",
    "aten.empty_strided.default", "aten.add.out", "aten.backward.default", "aten.pin_memory.default",
    "aten._foobar.default", "aten._test_warn_in_autograd.default", "aten.format.default", "aten.warn.default",
    "prim.device.default", "prims.add.default", "quantized.linear.default", "inductor.foo.default",
    "aten.add.Tensor\n", " aten.add.Tensor", "aten.add.Tensor;import os", "", "x" * 10000, None, 3, ["aten.add.Tensor"],
    {"op": "aten.add.Tensor"},
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: str(name)[:40])
def test_other_names_are_refused(name):
    with pytest.raises(ArtifactError) as caught:
        operation(name)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_names_go_round():
    for name, op in list(ALLOWED.items())[::7]:
        assert operation(operation_name(op)) is op is ALLOWED[name]
    for target in (operator.add, operator.getitem, operator.floordiv, torch.sym_max, torch.sym_float):
        assert operation(operation_name(target)) is target


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (torch.ops.aten.bernoulli.default, "draws random numbers"),
        (torch.ops.aten.add_.Tensor, "has an effect beyond its result"),
        (torch.ops.aten._local_scalar_dense.default, "into Python numbers"),
        (torch.ops.aten.nonzero.default, "whose size depends on values"),
        (torch.ops.aten.empty.memory_format, "memory that nothing has written"),
        (torch.ops.aten._thnn_fused_lstm_cell.default, "internal to PyTorch"),
        (torch.ops.higher_order.cond, "control flow that depends on data"),
        (print, "uses print, which cannot be saved"),
    ],
)
def test_a_model_is_told_what_it_uses(target, text):
    with pytest.raises(ModelError, match=text):
        operation_name(target)
