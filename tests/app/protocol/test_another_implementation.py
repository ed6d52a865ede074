"""The codec against another implementation of the protocol: what Triton's client writes is read, and the reverse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.protocol import (
    DATATYPES,
    HEADER_LENGTH,
    InferRequest,
    Options,
    Question,
    RequestedOutput,
    TensorSpec,
    decode_infer,
    encode_infer,
)

http = pytest.importorskip("tritonclient.http")


# Triton's client has BF16 only with a package that nothing else here needs.
KNOWN = [name for name in DATATYPES if name != "BF16"]


@st.composite
def tensors(draw):
    """Up to three tensors with the same number of rows: name, datatype, array, and whether it travels in binary."""
    rows = draw(st.integers(1, 3))
    found = []
    for index in range(draw(st.integers(1, 3))):
        datatype = DATATYPES[draw(st.sampled_from(KNOWN))]
        shape = (rows, *draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)))
        binary = not datatype.in_json or draw(st.booleans())
        limits = {"allow_nan": binary, "allow_infinity": binary} if datatype.dtype.kind == "f" else {}
        array = draw(hnp.arrays(datatype.dtype, shape, elements=hnp.from_dtype(datatype.dtype, **limits)))
        found.append((f"t{index}", datatype, array, binary))
    return found


@given(tensors(), st.booleans())
def test_what_tritons_client_writes_is_read(sent, names_outputs):
    inputs, specs = [], []
    for name, datatype, array, binary in sent:
        tensor = http.InferInput(name, array.shape, datatype.name)
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
        specs.append(TensorSpec(name, datatype.name, (-1, *array.shape[1:])))
    outputs = [http.InferRequestedOutput("std", binary_data=False)] if names_outputs else None
    body, length = http.InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, request_id="r-1", priority=2, timeout=2_000_000, parameters={"members": 3}
    )
    request = decode_infer(body, specs, ("mean", "std"), ("mean",), length)
    wanted = RequestedOutput("std", False) if names_outputs else RequestedOutput("mean", True)
    assert (request.id, request.outputs) == ("r-1", (wanted,))
    assert request.options == Options(Question(members=3), timeout=2.0, priority=3)
    for name, datatype, array, _ in sent:
        got = request.inputs[name]
        assert (got.dtype, got.shape) == (datatype.dtype, array.shape)
        assert got.tobytes() == array.tobytes()


@given(tensors())
def test_tritons_client_reads_what_is_written(answered):
    outputs = tuple(RequestedOutput(name, binary) for name, _, _, binary in answered)
    arrays = {name: array for name, _, array, _ in answered}
    datatypes = {name: datatype.name for name, datatype, _, _ in answered}
    encoded = encode_infer("m", "1", InferRequest("r-1", {}, outputs, 1), arrays, datatypes, {})
    length = encoded.headers.get(HEADER_LENGTH)
    result = http.InferenceServerClient.parse_response_body(
        encoded.body, header_length=None if length is None else int(length)
    )
    assert result.get_response()["id"] == "r-1"
    for name, _, array, _ in answered:
        got = result.as_numpy(name)
        assert got.shape == array.shape
        assert got.tobytes() == array.tobytes()
