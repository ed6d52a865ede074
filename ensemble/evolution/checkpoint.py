"""A population's state as numbers, text and tensors, to be kept and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ensemble.errors import InputError
from ensemble.evolution.ascent import State

_TENSORS = ("weights", "first", "second")


def to_dict(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept: copies on the CPU.

    Args:
        state: where the population stands.
        settings: what a state must have in common with who takes it up.
    """
    tensors = {part: {name: tensor.cpu().clone() for name, tensor in getattr(state, part).items()} for part in _TENSORS}
    return {**settings, "step": state.step, **tensors}


def from_dict(kept: Mapping[str, Any], settings: Mapping[str, Any], like: Mapping[str, Tensor]) -> State:
    """The state that was kept.

    Args:
        kept: from :func:`to_dict`.
        settings: of who takes it up.
        like: its weights, whose names, shapes, dtypes and device the state must have, or gets.

    Raises:
        InputError: it is of a population with other settings, or of another model.
    """
    parts = [*settings, "step", *_TENSORS]
    if not isinstance(kept, Mapping) or set(parts) != set(kept):
        raise InputError(f"The state of a population has {parts}.")
    if wrong := {n: kept[n] for n, value in settings.items() if type(kept[n]) is not type(value) or kept[n] != value}:
        ours = {name: settings[name] for name in wrong}
        raise InputError(f"The state is of a population with {wrong}; this one has {ours}.")
    step = kept["step"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= 2**62:
        raise InputError(f"step must be a number of updates, however: {step!r}.")
    tensors: dict[str, dict[str, Tensor]] = {}
    for part in _TENSORS:
        given = kept[part]
        # What an optimiser has not begun to keep is empty.
        wanted = like if part == "weights" or given else {}
        if not isinstance(given, Mapping) or given.keys() != wanted.keys():
            raise InputError(f"{part!r} of the state are not those of this model: {sorted(wanted)[:5]}.")
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
                raise InputError(f"{part!r} of the state: {name!r} must have shape {list(wanted[name].shape)}.")
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise InputError(f"{part!r} of the state: {name!r} must hold finite floating-point numbers.")
        tensors[part] = {n: t.to(wanted[n].device, wanted[n].dtype, copy=True) for n, t in given.items()}
    return State(step, **tensors)
