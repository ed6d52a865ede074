"""Ensembles of generated weights: members from codes, or one model whose weights follow a context."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemble.construct import check_count, perturb
from ensemble.ensemble import Ensemble
from ensemble.errors import ModelError
from ensemble.hypernetworks.contextual import Contextual, called, captured_target, split_example
from ensemble.hypernetworks.generated import Generated, first_bad, in_full
from ensemble.members import Members, Progress
from ensemble.memory import require
from ensemble.origin import Origin
from ensemble.perturbation import Recipe
from ensemble.program.capture import Captured, capture, close, evaluating
from ensemble.random import standard_normal
from ensemble.structured import LEFT, RIGHT, factorable
from ensemble.tasks import Task, heads

# Codes for which weights are generated at a time: numbers in all of them together.
_NUMBERS = 1 << 22
_KEPT_EXAMPLE_ROWS = 4


def generate(
    hypernetwork: nn.Module,
    target: nn.Module,
    *,
    codes: int | Tensor | None = None,
    context: str | None = None,
    example: Any,
    size: int | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    recipe: Recipe | None = None,
    members: int | None = None,
    seed: int = 0,
    task: Task = "raw",
    noise_variance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Make an ensemble of weights that one network gives (arXiv 1609.09106).

    With ``codes`` each member has the weights that the hypernetwork gives for one code. With ``context`` there is one
    model whose weights follow an additional input, row by row (:class:`~ensemble.Contextual`, which also
    trains it), or, with a ``recipe``, many of them, which say how sure it is.

    Args:
        hypernetwork: gives weights for codes, in a form that :class:`~ensemble.Contextual` tells; of
            low-rank deltas the members keep the factors alone. :class:`~ensemble.Hypernetwork` is one.
        target: the network that gets them; weights that are not given stay as they are, shared by all members.
        codes: the members' codes, (members, ...); or how many to draw, standard normal, from the seed: code i is a
            function of the seed and i alone.
        context: the name of the additional input.
        example: what the target is called with, as for :func:`~ensemble.perturb`; with ``context`` what the model is
            called with: a tuple with the context last, or a dict with it.
        size: numbers in a drawn code; the hypernetwork's ``code_size`` by default.
        include, exclude: patterns of the parameters that a vector of weights holds; all by default.
        recipe: with ``context``, how members differ: a perturbation of all weights that are left, such as
            ``Gaussian(0.05, include="hypernetwork.*")``.
        members: with ``recipe``, how many.
        seed, task, noise_variance, device, dtype, progress: as for :func:`~ensemble.perturb`.
        metadata: free JSON values to keep with it, beside "generated", which says which weights are generated and how.

    Raises:
        ModelError, ExportError: the hypernetwork's output does not fit the target, or one of them cannot be captured;
            the text says why.
        RecipeError: numbers out of range, or patterns that match nothing.
        MemoryLimitError: the members do not fit.

    Example:
        >>> ens = generate(hypernetwork, target, codes=64, size=8, example=x, task="classification")
        >>> ens = generate(hypernetwork, target, context="angle", example=(x, angle), task="classification")
    """
    for name, module in (("hypernetwork", hypernetwork), ("target", target)):
        if not isinstance(module, nn.Module):
            raise ModelError(f"{name} must be a torch.nn.Module, however: {type(module).__name__}.")
    if (codes is None) == (context is None):
        raise ModelError("Give codes=, for a member of each code, or context=, for weights that follow an input.")
    common: dict[str, Any] = {"task": task, "noise_variance": noise_variance, "metadata": metadata}
    if context is None:
        if recipe is not None or members is not None:
            raise ModelError("recipe= and members= go with context=; with codes= each code is a member.")
        assert codes is not None
        drawn = _codes(hypernetwork, codes, size, seed)
        captured = captured_target(target, example)
        place = torch.device(device) if device is not None else captured.example[0].device
        drawn = drawn.to(captured.example[0].device)
        with torch.no_grad(), evaluating(hypernetwork):
            made, generated = _members(hypernetwork, target, captured, drawn, (include, exclude), place, progress)
        about: dict[str, Any] = {
            "generated": {
                "codes": list(drawn.shape),
                "drawn_from_seed": seed if isinstance(codes, int) else None,
                "weights": generated.described(),
            }
        }
        return _ensemble(captured, made, place, dtype, seed=seed, about=about, **common)
    if (recipe is None) != (members is None):
        raise ModelError("recipe= and members= go together: how members differ, and how many there are.")
    model = Contextual(hypernetwork, target, context=context, example=example, include=include, exclude=exclude)
    call = _call(target, context, example)
    about = {"generated": {"context": context, "weights": model.generated.described()}}
    if recipe is not None and members is not None:
        return perturb(
            model,
            recipe,
            members=members,
            seed=seed,
            example=call,
            device=device,
            dtype=dtype,
            progress=progress,
            **{**common, "metadata": {**about, **(metadata or {})}},
        )
    captured = capture(model, call)
    place = torch.device(device) if device is not None else captured.example[0].device
    # One member: of all that it reads the smallest tensor stands for what members have of their own.
    floating = [name for name, weight in captured.weights.items() if weight.is_floating_point()]
    own = min(floating, key=lambda name: captured.weights[name].numel())
    shared = {name: weight.to(place, copy=True) for name, weight in captured.weights.items()}
    made = Members(1, {n: w for n, w in shared.items() if n != own}, {own: shared[own].unsqueeze(0)})
    return _ensemble(captured, made, place, dtype, seed=seed, about=about, **common)


def _ensemble(
    captured: Captured,
    members: Members,
    place: torch.device,
    dtype: torch.dtype | None,
    *,
    seed: int,
    about: dict[str, Any],
    task: Task,
    noise_variance: float | None,
    metadata: Mapping[str, Any] | None,
) -> Ensemble:
    heads(task, captured.program.outputs)
    members = members.to(place, dtype)
    origin = Origin(
        recipe=None,
        seed=seed,
        reference={},
        unused={name: tensor.to("cpu", copy=True) for name, tensor in captured.unused.items()},
        state_names=captured.state_names,
        example=[tensor[:_KEPT_EXAMPLE_ROWS].cpu() for tensor in captured.example],
        trainable=tuple(name for name in captured.weights if name in captured.trainable),
    )
    made = Ensemble(
        captured.program.to(place, members.dtypes),
        members,
        origin,
        task=task,
        noise_variance=noise_variance,
        metadata={**about, **(metadata or {})},
    )
    if dtype is not None:
        made.try_one()
    made.check()
    made.check_variances()
    return made


def _codes(hypernetwork: nn.Module, codes: int | Tensor, size: int | None, seed: int) -> Tensor:
    if isinstance(codes, Tensor):
        if codes.ndim == 0 or not len(codes):
            raise ModelError(f"codes must have a first dimension, the members, however: shape {list(codes.shape)}.")
        check_count(len(codes), seed)
        return codes.detach()
    if not isinstance(codes, int):
        raise ModelError(
            f"codes must be a tensor (members, ...), or how many to draw, however: {type(codes).__name__}."
        )
    check_count(codes, seed)
    size = size if size is not None else getattr(hypernetwork, "code_size", None)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ModelError("Say how many numbers a code has: size=, or give the codes themselves.")
    return standard_normal(seed, range(codes), "code", (size,))


def _members(
    hypernetwork: nn.Module,
    target: nn.Module,
    captured: Captured,
    codes: Tensor,
    patterns: tuple[str | Sequence[str], str | Sequence[str]],
    place: torch.device,
    progress: Progress | None,
) -> tuple[Members, Generated]:
    """Weights of every code, generated some codes at a time."""
    program, weights, count = captured.program, captured.weights, len(codes)
    probe = called(hypernetwork, codes[:1])
    generated = Generated.of(
        probe, 1, target, weights, aliases=program.aliases, include=patterns[0], exclude=patterns[1]
    )
    factored, dense = factorable(program, generated.factored)
    alone = in_full(generated.read(probe), weights, dense)
    require([(_dtype(name, weights), tensor.shape[1:]) for name, tensor in alone.items()], count, place)
    stacked = {n: torch.empty((count, *t.shape[1:]), dtype=_dtype(n, weights), device=place) for n, t in alone.items()}
    step = max(2, _NUMBERS // max(1, sum(tensor[0].numel() for tensor in alone.values())))
    for start in range(0, count, step):
        stop = min(count, start + step)
        found = in_full(generated.read(called(hypernetwork, codes[start:stop])), weights, dense)
        for name, tensor in found.items():
            if tensor.shape[0] != stop - start:
                raise ModelError(f"The hypernetwork gives {tensor.shape[0]} weights for {stop - start} codes.")
            if start == 0 and not close(tensor[:1], alone[name]):
                raise ModelError(
                    "What the hypernetwork gives for a code depends on the codes beside it; does a layer use "
                    "statistics of the batch?"
                )
            stacked[name][start:stop] = tensor
        if bad := first_bad(found):
            raise ModelError(f"For code {start + bad[1]} the hypernetwork gives a {bad[0]!r} that is not finite.")
        if progress:
            progress(stop, count)
    shared = {n: w.to(place, copy=True) for n, w in weights.items() if n not in stacked}
    return Members(count, shared, stacked, factored), generated


def _dtype(name: str, weights: Mapping[str, Tensor]) -> torch.dtype:
    return weights[name if name in weights else name.removesuffix(LEFT).removesuffix(RIGHT)].dtype


def _call(target: nn.Module, context: str, example: Any) -> Any:
    """What the contextual model is called with, by name where the target's signature lets it."""
    args, kwargs, codes = split_example(example, context)
    signature = inspect.signature(target.forward)
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in signature.parameters.values()):
        return example
    return {**signature.bind(*args, **kwargs).arguments, context: codes}
