"""Which operations a graph may hold: functional, deterministic ATen operators that give tensors, and size arithmetic.

The list is judged from each operator's schema and tags. TorchScript brings operators of its own into the same
namespace (``manual_seed``, ``set_grad_enabled``, repetition of lists, factorials), and PyTorch has internal ones that
trust their caller's arguments; neither has a place in a graph that may come from outside.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ensemble.errors import ArtifactError, ModelError

# Sizes are computed with these; their operands may be sizes and numbers only.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "eq", "ne", "lt", "le", "gt", "ge")
} | {"torch.sym_max": torch.sym_max, "torch.sym_min": torch.sym_min, "torch.sym_not": torch.sym_not,
     "torch.sym_float": torch.sym_float, "torch.sym_int": torch.sym_int}  # fmt: skip
_GETITEM = "operator.getitem"
_ATEN = re.compile(r"aten\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_RESULTS = {"Tensor", "List[Tensor]"}
# These give sizes, as numbers.
_SIZES = {"sym_size.int", "sym_stride.int", "sym_numel.default", "sym_storage_offset.default"}
_ARGUMENTS = re.compile(r"(Optional\[)?(List\[)?(Optional\[)?(Tensor|number|int|float|bool|str)\]*|Optional\[Device\]")
# Files, storage, devices, gradients, formats other than dense, halves of operations, results whose size varies.
_REFUSED = re.compile(
    r"from_file|save|set|cpu|cuda|.*pin_memory.*|.*resize.*|lift.*|.*_(backward|jvp|renorm)(_.*)?|.*overrideable"
    r"|.*(sparse|quantiz|qparams|nested|mkldnn|cudnn|miopen|fbgemm).*|(mps|q|int_repr|nonzero|slow|thnn)_.*|int_repr"
    r"|batch_norm_(elemt|stats|gather|update).*"
)
# Of the internal operators, those that export leaves in graphs.
_INTERNAL = {"_trilinear", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d",
             "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_conj",
             "_conj_physical", "_neg_view", "_linalg_det", "_linalg_eigh", "_linalg_slogdet", "_linalg_solve_ex",
             "_linalg_svd", "_logcumsumexp", "_aminmax", "_stack", "_unsafe_view", "_unsafe_index", "_convolution",
             "_is_all_true", "_is_any_true", "_weight_norm_interface", "_embedding_bag_forward_only",
             "_scaled_dot_product_flash_attention_for_cpu"}  # fmt: skip
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
# They make tensors of a dtype that they name.
_CREATE = {"full", "zeros", "ones", "eye", "scalar_tensor", "arange", "linspace", "full_like", "zeros_like",
           "ones_like", "new_full", "new_zeros", "new_ones"}  # fmt: skip
# Checks that export writes between the operations; the signature is checked before a graph runs.
_CHECKS = {"_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range",
           "sym_constrain_range_for_size"}  # fmt: skip


def operation_name(target: object) -> str:
    """How an operation is written: ``aten.addmm.default``, ``operator.mul``.

    Raises:
        ModelError: it is not on the allow-list; the text says what it is.
    """
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if reason := _refusal(target):
            raise ModelError(f"The model uses the operation {name}, {reason}.")
        return name
    for name, function in [*_ARITHMETIC.items(), (_GETITEM, operator.getitem)]:
        if target is function:
            return name
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise ModelError(
            f"The model uses control flow that depends on data ({target}), which members cannot share in one call. "
            "Replace it by torch.where."
        )
    raise ModelError(f"The model uses {getattr(target, '__name__', target)}, which cannot be saved in a graph.")


def operation(name: object) -> Callable[..., Any]:
    """The operation that :func:`operation_name` wrote.

    Raises:
        ArtifactError: it is unknown or refused.
    """
    if not isinstance(name, str):
        raise ArtifactError("graph: an operation's name must be text.")
    if name == _GETITEM:
        return operator.getitem
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    if match := _ATEN.fullmatch(name):
        packet = getattr(torch.ops.aten, match[1], None)
        # vars of the packet would miss overloads that were not used yet; only what is an overload counts.
        overload = getattr(packet, match[2], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
        if isinstance(overload, torch._ops.OpOverload):
            if reason := _refusal(overload):
                raise ArtifactError(f"graph: refused the operation {name}, {reason}.")
            return overload
    raise ArtifactError(f"graph: unknown or refused operation {name[:80]!r}.")


def _refusal(op: torch._ops.OpOverload) -> str | None:
    if op.namespace != "aten":
        return "a custom operator; only PyTorch's own (aten) can be saved. Keep its code with live=True"
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "which draws random numbers; a member must give the same answer each time (is the model in eval mode?)"
    name = _base(op)
    if torch.Tag.data_dependent_output in op.tags or name in ("item", "_local_scalar_dense"):
        return "which turns tensor values into Python numbers; members cannot share that in one call"
    # index with a boolean mask is one too, but index is mostly used with integers.
    if torch.Tag.dynamic_output_shape in op.tags and name not in ("index", "_unsafe_index"):
        return "which gives a result whose size depends on values; use torch.where or a mask instead"
    if op._schema.is_mutable or not _gives_tensors(op):
        return "which has an effect beyond its result, or gives no tensor"
    if _REFUSED.fullmatch(name) or not all(_ARGUMENTS.fullmatch(str(a.type)) for a in op._schema.arguments):
        return "which is not among those that a graph may hold"
    if name in _UNWRITTEN:
        return "which returns memory that nothing has written"
    if name.startswith("_") and torch.Tag.core not in op.tags and name not in _INTERNAL:
        return "which is internal to PyTorch"
    return None


def _gives_tensors(op: torch._ops.OpOverload) -> bool:
    kinds = [str(result.type) for result in op._schema.returns]
    return bool(kinds) and (_RESULTS.issuperset(kinds) or str(op).removeprefix("aten.") in _SIZES)


def is_check(target: object) -> bool:
    """Whether this only checks its arguments."""
    return isinstance(target, torch._ops.OpOverload) and _base(target) in _CHECKS


def creates(target: object) -> bool:
    """Whether this makes a tensor of a dtype that it names."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and _base(target) in _CREATE


def casts(target: object) -> bool:
    """Whether this turns a tensor into one of a dtype that it names."""
    return target is torch.ops.aten._to_copy.default


def normalise(node: fx.Node) -> None:
    """Replace an operation whose result depends on more than the values that it is given.

    A view depends on strides, and under ``vmap`` a convolution's output has others than it had when it was exported: a
    reshape does not. Uninitialised memory becomes zeros, since a model that is right overwrites it.
    """
    target, aten = node.target, torch.ops.aten
    if target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or _base(target) not in _UNWRITTEN:
        return
    kept = {key: node.kwargs[key] for key in ("dtype", "device") if node.kwargs.get(key) is not None}
    if _base(target) == "empty_like":
        node.target, node.args = aten.full_like.default, (node.args[0], 0)
    elif _base(target).startswith("new_"):
        node.target, node.args = aten.new_full.default, (*node.args[:2], 0)
    else:
        node.target, node.args = aten.full.default, (node.args[0], 0)
    node.kwargs = kept


def _base(op: torch._ops.OpOverload) -> str:
    return str(op._schema.name).split("::")[1]
