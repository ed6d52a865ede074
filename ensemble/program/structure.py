"""Nested containers of tensors, and the flat list of named tensors that a graph takes and gives.

A model may take several inputs and give tuples, dicts, or dataclasses of tensors. Graphs, files and the wire know
only flat lists with names, so the nesting is written down once, as plain JSON values, when the model is captured.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ensemble.errors import InputError, ModelError

# The written form of one level: {"tensor": i}, {"constant": value}, {"list": [...]}, {"tuple": [...]}, {"dict": {...}}.
Layout = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Structure:
    """One nesting: its layout, and a name for each tensor in it.

    Names join the keys on the way with dots ("y.k", "hidden.0"). A lone tensor is called by the fallback name that
    :meth:`of` was given.
    """

    layout: Layout
    names: tuple[str, ...]

    @staticmethod
    def of(value: object, alone: str) -> tuple[Structure, list[Tensor]]:
        """The structure of a value, and its tensors in order.

        Raises:
            ModelError: something in it is neither a tensor, a plain constant, nor a container of those; or two
                tensors have one name.
        """
        names: list[str] = []
        tensors: list[Tensor] = []

        def walk(node: object, path: str) -> Layout:
            match node:
                case Tensor():
                    names.append(path or alone)
                    tensors.append(node)
                    return {"tensor": len(tensors) - 1}
                case None | bool() | int() | float() | str():
                    return {"constant": node}
                case Mapping():
                    if not all(isinstance(key, str) for key in node):
                        raise ModelError(f"Keys of a dict of tensors must be text, however: {list(node)[:5]}.")
                    return {"dict": {key: walk(item, _join(path, key)) for key, item in node.items()}}
                case tuple() | list():
                    keys = getattr(node, "_fields", None) or [
                        f"{alone}_{i}" if not path else str(i) for i in range(len(node))
                    ]
                    items = [walk(item, _join(path, key)) for key, item in zip(keys, node, strict=True)]
                    return {"list" if isinstance(node, list) else "tuple": items}
                case _ if dataclasses.is_dataclass(node) and not isinstance(node, type):
                    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
                    return walk(fields, path)
            raise ModelError(
                f"A model's inputs and outputs must be tensors, numbers, text, or tuples, lists and dicts of them; "
                f"{path or alone!r} is a {type(node).__name__}."
            )

        layout = walk(value, "")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ModelError(f"Two tensors would have the name {twice[0]!r}; use keys without dots.")
        return Structure(layout, tuple(names)), tensors

    def pack(self, tensors: Sequence[Any]) -> Any:
        """The nested value that holds these tensors."""

        def build(layout: Layout) -> Any:
            ((kind, content),) = layout.items()
            match kind:
                case "tensor":
                    return tensors[content]
                case "constant":
                    return content
                case "dict":
                    return {key: build(item) for key, item in content.items()}
                case "tuple":
                    return tuple(build(item) for item in content)
                case _:
                    return [build(item) for item in content]

        return build(self.layout)

    def flatten(self, value: object, alone: str) -> list[Tensor]:
        """The tensors of a value that must have this structure (a named tuple may stand for a tuple).

        Raises:
            ModelError: it has another structure.
        """
        other, tensors = Structure.of(value, alone)
        if other.layout != self.layout:
            raise ModelError(
                f"The nesting, or a constant in it, differs from what was captured: {str(other.layout)[:200]}, "
                f"not {str(self.layout)[:200]}."
            )
        return tensors


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How a call's arguments become a flat list of tensors: the forward signature, and the nesting below it.

    Args:
        positional: names of the parameters that may be given by position, in order.
        structure: the nesting of {parameter: value}, for every parameter of the captured call.
    """

    positional: tuple[str, ...]
    structure: Structure

    @staticmethod
    def of(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Write down a call.

        Raises:
            ModelError: the arguments do not fit the signature, or hold what cannot be written down.
        """
        signature = inspect.signature(forward)
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ModelError(f"The example does not fit the model's forward{signature}: {error}.") from None
        values: dict[str, Any] = {}
        positional: list[str] = []
        # Behind a parameter that was left out, a position would mean another one.
        order = list(signature.parameters)
        gap = next((name for name, given in zip(order, bound, strict=False) if name != given), None)
        for name, value in bound.items():
            match signature.parameters[name].kind:
                case inspect.Parameter.VAR_POSITIONAL:
                    values |= {f"{name}_{i}": item for i, item in enumerate(value)}
                    positional += [f"{name}_{i}" for i in range(len(value))]
                case inspect.Parameter.VAR_KEYWORD:
                    values |= value
                case inspect.Parameter.KEYWORD_ONLY:
                    values[name] = value
                case _:
                    values[name] = value
                    if gap is None or order.index(name) < order.index(gap):
                        positional.append(name)
        structure, _ = Structure.of(values, alone="input")
        return Arguments(tuple(positional), structure)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each input tensor, in order."""
        return self.structure.names

    @functools.cached_property
    def _plain(self) -> int | None:
        """How many arguments there are, if all are tensors that are given by position; else None."""
        layout = self.structure.layout["dict"]
        in_order = {name: {"tensor": place} for place, name in enumerate(self.positional)}
        return len(in_order) if list(layout.items()) == list(in_order.items()) else None

    def call(self, model: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Call a live model with the captured arguments, these tensors in place of the example's."""
        values = self.structure.pack(tensors)
        args = [values[name] for name in self.positional]
        return model(*args, **{name: value for name, value in values.items() if name not in self.positional})

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The flat tensors of a call, given as the model's forward takes them or as one {input name: tensor}.

        Raises:
            InputError: arguments missing, unknown, or nested in another way.
        """
        if not kwargs:
            # The usual calls, which should not take longer than a small model.
            if len(args) == self._plain and all(isinstance(value, Tensor) for value in args):
                return list(args)
            if len(args) == 1 and isinstance(args[0], Mapping) and set(args[0]) == set(self.names):
                return [args[0][name] for name in self.names]
        expected = list(self.structure.layout["dict"])
        if len(args) > len(self.positional):
            raise InputError(f"Expected {len(self.positional)} positional inputs {expected}, got {len(args)}.")
        given = dict(zip(self.positional, args, strict=False))
        if twice := sorted(set(given) & set(kwargs)):
            raise InputError(f"Given by position and by name: {', '.join(twice)}.")
        given |= kwargs
        if unknown := sorted(set(given) - set(expected)):
            raise InputError(f"Unknown inputs {unknown}; this model takes {expected}.")
        for name in expected:
            if name not in given:
                # What was a plain constant in the example (None, a flag) need not be said again.
                if "constant" not in self.structure.layout["dict"][name]:
                    raise InputError(f"The input {name!r} is missing; this model takes {expected}.")
                given[name] = self.structure.layout["dict"][name]["constant"]
        try:
            return self.structure.flatten({name: given[name] for name in expected}, alone="input")
        except ModelError as error:
            raise InputError(str(error)) from None


def as_call(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as (args, kwargs): a tuple holds positional arguments, a dict named ones, else it is the only one."""
    match example:
        case tuple():
            return tuple(example), {}
        case dict():
            return (), dict(example)
        case _:
            return (example,), {}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
