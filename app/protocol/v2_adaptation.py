"""Requests of V2 for a model that is adapted to the examples that come with them, or was adapted before.

The examples are inputs more of the ordinary infer request: `support.` and the input's name, and `support.targets`; of a
model that makes several predictions `support.targets.` and the prediction's name. They have as many rows as there are
examples, where the other inputs, the queries, have the batch. The rest are parameters, among them `adapted`, the handle
of what was kept.
"""

from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from app.errors import BadRequest
from app.protocol.adapting import LEARNING_RATE, STEPS, SUPPORT, Adapt, Adapting
from app.protocol.tensors import TensorSpec
from app.protocol.wording import describe, listing

__all__ = ["asks_to_adapt", "described_adapting", "explain_adapting", "read_adapt", "read_handle", "support_inputs"]

_LONGEST_HANDLE = 64


def asks_to_adapt(document: Mapping[str, Any], about: Adapting, own: Collection[str]) -> bool:
    """Whether a request brings examples, or names an adapted model.

    Args:
        document: the request.
        about: the model.
        own: names of its inputs.

    Raises:
        Forbidden, BadRequest: it does, and may not.
    """
    parameters, inputs = document.get("parameters"), document.get("inputs")
    names = [entry.get("name") for entry in inputs if isinstance(entry, dict)] if isinstance(inputs, list) else []
    asked = isinstance(parameters, dict) and parameters.get("adapted") is not None
    asked = asked or any(isinstance(name, str) and name.startswith(SUPPORT) and name not in own for name in names)
    if asked:
        about.check()
    return asked


def support_inputs(about: Adapting) -> tuple[TensorSpec, ...]:
    """The examples as inputs."""
    specs = (*about.inputs, *about.targets.values())
    return tuple(TensorSpec(SUPPORT + spec.name, spec.datatype, spec.shape) for spec in specs)


def read_adapt(parameters: Mapping[str, Any], arrays: dict[str, NDArray[Any]], about: Adapting) -> Adapt | None:
    """What a request adapts to; None if it brings no examples but names an adapted model.

    Args:
        parameters: of the request.
        arrays: its inputs by their names; those of the examples are taken out.
        about: the model.

    Raises:
        BadRequest: something is missing, or has a value that it cannot have.
    """
    names = [spec.name for spec in support_inputs(about)]
    given = {name.removeprefix(SUPPORT): arrays.pop(name) for name in names if name in arrays}
    if read_handle(parameters) is not None:
        if given:
            raise BadRequest("a request may bring examples or name an adapted model, however: both")
        return None
    missing = [SUPPORT + spec.name for spec in about.inputs if spec.name not in given]
    if missing:
        raise BadRequest(f"examples must have all inputs of the model, however: {listing(missing)} missing")
    targets = {name: given[spec.name] for name, spec in about.targets.items() if spec.name in given}
    if not targets:
        wanted = listing(SUPPORT + spec.name for spec in about.targets.values())
        raise BadRequest(f"examples must have targets, as input {wanted}")
    patterns = parameters.get("weights")
    if isinstance(patterns, str):
        # Not every client of V2 can send a list.
        patterns = [part.strip() for part in patterns.split(",")]
    support = {spec.name: given[spec.name] for spec in about.inputs}
    return about.read({**parameters, "weights": patterns}, support, targets, "parameters.")


def read_handle(parameters: Mapping[str, Any]) -> str | None:
    """The handle of an adapted model that a request names.

    Raises:
        BadRequest: it is none.
    """
    handle = parameters.get("adapted")
    if handle is None:
        return None
    if not isinstance(handle, str) or not 0 < len(handle) <= _LONGEST_HANDLE:
        raise BadRequest(f"parameters.adapted must be the handle of an adapted model, however: {describe(handle)}")
    return handle


def explain_adapting(about: Adapting) -> dict[str, str]:
    """What the parameters mean, for people; nothing where nothing can be adapted."""
    if about.refusal:
        return {}
    limits = about.limits
    found = {
        "steps": f"of gradient descent on the examples that come as inputs named support.*: 1 to {limits.steps}, "
        f"{min(STEPS, limits.steps)} if it is not given",
        "learning_rate": f"the step size, above 0; {LEARNING_RATE:g} if it is not given",
        "loss": f"what the steps minimise: {' or '.join(about.losses)}",
        "weights": "patterns of the names of weights that adapt, with commas between them; those in which members "
        "differ if they are not given",
        "factors": "true to adapt the members' factors instead of full weights",
    }
    if limits.keep_seconds:
        found["keep_seconds"] = (
            f"keep the adapted model for so long, up to {limits.keep_seconds:g}; the answer says its handle"
        )
        found["adapted"] = "the handle of an adapted model that was kept: it answers instead of the model"
    return found


def described_adapting(about: Adapting) -> dict[str, Any]:
    """What may be adapted to, for the metadata; nothing where nothing can be."""
    if about.refusal:
        return {}
    return {
        "support_inputs": [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in support_inputs(about)
        ],
        "losses": list(about.losses),
        "most_steps": about.limits.steps,
        "most_examples": about.limits.examples,
        "longest_keep_seconds": about.limits.keep_seconds,
    }
