"""The codecs that are compared do the same work."""

from __future__ import annotations

import json

import numpy as np
import pytest

from app.protocol import EncodedResponse
from benchmarks.protocol import DATATYPES, measure, ways


@pytest.mark.parametrize("rows", [1, 3])
def test_every_codec_gives_the_same_arrays_and_the_same_answer(rows):
    generator = np.random.default_rng(rows)
    x = generator.random((rows, 7), dtype=np.float32)
    answer = {name: generator.integers(0, 9, (rows, 2)).astype("f4" if name != "label" else "i8") for name in DATATYPES}
    found = ways(x, answer, x.ravel().tolist())
    assert {(way.form, way.codec) for way in found} >= {
        (form, codec) for form in ("V2, JSON, flat", "plain API") for codec in ("ensembled", "pydantic", "json")
    }
    for way in found:
        request, array = way.decode()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, x)
        encoded = way.encode(request)
        if isinstance(encoded, EncodedResponse):
            length = int(encoded.headers.get("Inference-Header-Content-Length", len(encoded.body)))
            document = json.loads(encoded.body[:length])
            assert [output["name"] for output in document["outputs"]] == list(answer)
        else:
            outputs = json.loads(encoded)["outputs"]
            assert {name: np.array(values).tolist() for name, values in outputs.items()} == {
                name: array.tolist() for name, array in answer.items()
            }


@pytest.mark.parametrize("digits", ["few", "all"])
def test_a_table_has_a_row_for_each(digits):
    assert measure(1, 5, digits, 1e-6).row_count == 8
