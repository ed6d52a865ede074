"""The client for ordinary programs and threads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx
from numpy.typing import ArrayLike

from app.client import calls, flows
from app.client.calls import Own
from app.client.errors import ClientError
from app.client.flows import Flow, Step, T
from app.client.result import Result
from app.client.retry import Attempts, Retry
from app.client.transport import Stack


class Client:
    """Asks a service; may be shared by threads.

    Args:
        url: of the service, such as ``http://127.0.0.1:8000``.
        key: of the service, if it has one.
        model: asked where a call names none; the service's only one by default.
        timeout: seconds for a call, with all its attempts and the waits between them; None for no end.
        retry: how often, and after what time, a call is repeated.
        binary: send and receive tensors as bytes; False for JSON.
        compress: send large requests in gzip, and ask for such answers.
        connections: at most so many requests are in flight; others wait.
        tls: how https is verified; as the system does by default.
        transport: of httpx, instead of the client's own connections.

    Raises:
        ValueError: the URL or the key cannot be used.

    Example:
        >>> with Client("http://127.0.0.1:8000", model="digits") as client:
        ...     client.infer(images, outputs=["label"])["label"]
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        timeout: float | None = 60.0,
        retry: Retry = Retry(),  # noqa: B008 - it is frozen
        binary: bool = True,
        compress: bool = False,
        connections: int = 256,
        tls: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._settled = calls.Settled(
            url, key=key, model=model, timeout=timeout, retry=retry, binary=binary, compress=compress
        )
        self._transport = transport or Stack(self._settled.url, connections, tls)

    def __repr__(self) -> str:
        return f"Client({self._settled.base!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def infer(
        self,
        inputs: Mapping[str, ArrayLike] | ArrayLike,
        outputs: Sequence[str] | None = None,
        *,
        model: str | None = None,
        version: str | None = None,
        members: int | None = None,
        tolerance: float | None = None,
        confidence_level: float | None = None,
        levels: Sequence[float] | None = None,
        target: Mapping[str, ArrayLike] | ArrayLike | None = None,
        perturbation: Mapping[str, Any] | None = None,
        weights: Mapping[str, ArrayLike] | None = None,
        priority: int | None = None,
        timeout: float | Own | None = Own.TIMEOUT,
        request_id: str | None = None,
    ) -> Result:
        """What a model says.

        Args:
            inputs: an array for each input by name, or the one array of a model with one input; the first dimension is
                the batch. Numbers are converted to the model's datatype where that loses nothing but precision.
            outputs: statistics to ask for; the model's defaults by default.
            model, version: which to ask.
            members: use only the first so many.
            tolerance: evaluate members until the standard error of the mean is at most this.
            confidence_level: of intervals and sets, between 0 and 1; the model's own by default.
            levels: of quantiles, each between 0 and 1; 0.05, 0.5 and 0.95 by default.
            target: for ``log_prob``, one for each row; of a model with several outputs an array for each target by its
                name in the model's metadata.
            perturbation: ask members of another recipe or seed, drawn from the trained weights for this request: a dict
                with ``recipe``, settings such as ``scale``, ``seed`` and ``members``; what is left out is as in the
                model's own recipe.
            weights: ask the model with these weights: each of the weight's shape, or with members first; or factors of
                what is added to a weight, under its name with ``.left`` and ``.right``.
            priority: 1 (most urgent) to 9.
            timeout: seconds, as in the constructor; the service is told them, and computes nothing after.
            request_id: under which the service's log should have it.

        Raises:
            InputError: the inputs, the target or the weights are not what the model takes; they were not sent.
            ClientError: any other; see :mod:`app.client.errors`.
        """
        parameters = calls.parameters(members, tolerance, confidence_level, levels, priority, perturbation)
        flow = flows.infer(
            self._settled,
            model,
            version,
            inputs,
            outputs,
            parameters,
            target=target,
            perturbation=perturbation,
            weights=weights,
            request_id=request_id,
        )
        return self._run(flow, self._settled.attempts(timeout))

    predict = infer

    def adapt(
        self,
        support: tuple[Mapping[str, ArrayLike] | ArrayLike, Mapping[str, ArrayLike] | ArrayLike],
        queries: Mapping[str, ArrayLike] | ArrayLike | None = None,
        outputs: Sequence[str] | None = None,
        *,
        steps: int | None = None,
        learning_rate: float | None = None,
        loss: str | None = None,
        weights: Sequence[str] | str | None = None,
        factors: bool | None = None,
        keep_seconds: float | None = None,
        model: str | None = None,
        version: str | None = None,
        members: int | None = None,
        confidence_level: float | None = None,
        levels: Sequence[float] | None = None,
        priority: int | None = None,
        timeout: float | Own | None = Own.TIMEOUT,
        request_id: str | None = None,
    ) -> Result:
        """What a model says once it is adapted to examples; of a service with ``--adaptation``.

        Args:
            support: (inputs, targets), the examples; inputs as of :meth:`infer`, targets of several outputs by their
                names, for all of them or some.
            queries: inputs that the adapted model is asked about; may be left out with ``keep_seconds``.
            outputs: statistics to ask for; the model's defaults by default.
            steps, learning_rate, loss: of the gradient descent; the service's by default.
            weights: patterns of the names of the weights that adapt; those in which members differ by default.
            factors: adapt the members' factors instead of full weights.
            keep_seconds: keep the adapted model for so long; ``result.parameters["adapted"]["handle"]`` is its handle.
                Such a call is repeated only where the service surely did nothing.
            model, version, members, confidence_level, levels, priority, timeout, request_id: as of :meth:`infer`.

        Raises:
            InputError: the examples or queries cannot be sent; nothing was.
            ClientError: any other; a loss that diverges is a :class:`BadRequest`.
        """
        wishes = {
            "outputs": outputs,
            "steps": steps,
            "learning_rate": learning_rate,
            "loss": loss,
            "weights": weights,
            "factors": factors,
            "keep_seconds": keep_seconds,
            "parameters": calls.parameters(members, None, confidence_level, levels, priority),
        }
        flow = flows.adapt(self._settled, model, version, support, queries, request_id, wishes)
        return self._run(flow, self._settled.attempts(timeout))

    def ask_adapted(
        self,
        handle: str,
        inputs: Mapping[str, ArrayLike] | ArrayLike,
        outputs: Sequence[str] | None = None,
        *,
        confidence_level: float | None = None,
        levels: Sequence[float] | None = None,
        priority: int | None = None,
        timeout: float | Own | None = Own.TIMEOUT,
        request_id: str | None = None,
    ) -> Result:
        """What an adapted model says that was kept.

        Args:
            handle: from :meth:`adapt`.
            inputs, outputs, confidence_level, levels, priority, timeout, request_id: as of :meth:`infer`.

        Raises:
            NotFound: there is none under this handle, or not any more.
            ClientError: any other.
        """
        parameters = calls.parameters(None, None, confidence_level, levels, priority)
        flow = flows.ask_adapted(self._settled, handle, inputs, outputs, parameters, request_id)
        return self._run(flow, self._settled.attempts(timeout))

    def forget_adapted(self, handle: str, *, timeout: float | Own | None = Own.TIMEOUT) -> None:
        """End an adapted model before its time.

        Raises:
            NotFound: there is none under this handle, or not any more.
            ClientError: any other.
        """
        attempts = self._settled.attempts(timeout)
        self._run(flows.forget_adapted(self._settled, handle, attempts), attempts)

    def metadata(
        self, model: str | None = None, version: str | None = None, *, timeout: float | Own | None = Own.TIMEOUT
    ) -> dict[str, Any]:
        """The protocol's description of a model: its inputs, its outputs and what they mean."""
        return self._run(flows.metadata(self._settled, model, version), self._settled.attempts(timeout))

    def models(self, *, timeout: float | Own | None = Own.TIMEOUT) -> list[dict[str, Any]]:
        """Every version of every model, its state, and why it is not ready."""
        found: list[dict[str, Any]] = self._run(flows.index(self._settled), self._settled.attempts(timeout))
        return found

    def live(self) -> bool:
        """Whether the service is there, and answers in time."""
        return self._is_well("/v2/health/live")

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Whether a model can answer; without a name, whether all can."""
        return self._is_well("/v2/health/ready" if model is None else f"{calls.model_path(model, version)}/ready")

    def load(self, model: str, *, timeout: float | None = None) -> None:
        """Load a model, or its newest versions, from the service's directory; answers while the old one still does."""
        self._run(flows.manage(self._settled, model, "load"), self._settled.attempts(timeout))

    def unload(self, model: str, *, timeout: float | None = None) -> None:
        """Take a model out of service."""
        self._run(flows.manage(self._settled, model, "unload"), self._settled.attempts(timeout))

    def _is_well(self, path: str) -> bool:
        return self._run(flows.is_well(self._settled, path), self._settled.one_attempt())

    def _run(self, flow: Flow[T], attempts: Attempts) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    response = self._send(step, attempts)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, step: Step, attempts: Attempts) -> httpx.Response:
        request = step.request
        attempts.start_over()
        while True:
            error: ClientError | None
            try:
                calls.limit(request, attempts.left())
                response = self._transport.handle_request(request)
                response.read()
            except calls.FAILURES as fault:
                error = calls.failure(fault, attempts)
            else:
                if (error := calls.refusal(response)) is None:
                    return response
            time.sleep(attempts.wait_after(error, idempotent=step.idempotent))
