"""The bodies of the OpenAPI description that are the same for all models.

They state what the protocol package checks, and `tests/app/test_openapi.py` that they do.
"""

from __future__ import annotations

from typing import Any

from app.protocol import (
    LONGEST_TIMEOUT,
    MOST_LEVELS,
    PRIORITIES,
    explain_plain_options,
    explain_v2_options,
)

Schema = dict[str, Any]

# As everywhere, null is as good as left out, and a number is an id too.
_ID: Schema = {"type": ["string", "number", "null"], "pattern": "^[A-Za-z0-9._:-]{0,128}$"}
_NAME: Schema = {"type": "string"}
# How many members a model has, its own description says.
_V2_MEANINGS, _PLAIN_MEANINGS = explain_v2_options(0), explain_plain_options(0)
_LEVEL_TEXT = r"0?\.[0-9]{0,7}[1-9][0-9]{0,7}"
_LEVEL: Schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_WISHES: dict[str, Schema] = {
    "members": {"type": ["integer", "null"], "minimum": 1, "description": "use only the first so many members"},
    "tolerance": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "description": _V2_MEANINGS["tolerance"],
    },
    "confidence_level": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "of intervals and sets; the model's own if it is not given",
    },
    "levels": {
        "description": _V2_MEANINGS["levels"],
        "anyOf": [
            {"type": "array", "minItems": 1, "maxItems": MOST_LEVELS, "items": _LEVEL},
            {"type": "string", "pattern": f"^{_LEVEL_TEXT}(, ?{_LEVEL_TEXT}){{0,{MOST_LEVELS - 1}}}$"},
            {**_LEVEL, "type": ["number", "null"]},
        ],
    },
    "priority": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": PRIORITIES,
        "description": _V2_MEANINGS["priority"],
    },
}
_PERTURBATION: dict[str, Schema] = {
    "recipe": {
        "type": ["string", "null"],
        "description": "members of another recipe, drawn from the trained weights for this request; its settings, such "
        "as scale and rank, stand beside it. What is not given is as in the model's own recipe",
    },
    "seed": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": 2**63 - 1,
        "description": "that the members are drawn from, with recipe or without; members is then how many",
    },
}
_V2_PARAMETERS: Schema = {
    "type": ["object", "null"],
    "description": "others are passed over",
    "properties": {
        **_WISHES,
        **_PERTURBATION,
        "timeout": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": LONGEST_TIMEOUT * 1_000_000,
            "description": _V2_MEANINGS["timeout"],
        },
        "binary_data_output": {
            "type": ["boolean", "null"],
            "description": "whether outputs come as bytes that do not say so themselves",
        },
        "sequence_id": {"enum": [0, "", None], "description": "no state is kept between requests"},
    },
}
_PLAIN_PARAMETERS: Schema = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "properties": {
        **_WISHES,
        "perturbation": {
            "type": ["object", "null"],
            "description": "members of this request alone",
            "properties": {**_PERTURBATION, "members": {"type": ["integer", "null"], "minimum": 1}},
            "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
        },
        "timeout_seconds": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": LONGEST_TIMEOUT,
            "description": _PLAIN_MEANINGS["timeout_seconds"],
        },
    },
}
_TENSOR: Schema = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": _NAME,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "examples": ["FP32"]},
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "binary_data_size": {
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "description": "bytes behind the JSON, instead of data",
                }
            },
        },
        "data": {"type": "array", "items": {}, "description": "row-major, flat or nested"},
    },
}
PREDICT: Schema = {
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {
            "description": "a list of rows, or an object with a list of rows for each input",
            "anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}],
        },
        "outputs": {"type": ["array", "null"], "items": _NAME, "description": "statistics to send back"},
        "target": {
            "description": "for outputs that are about a target, as log_prob: a list with one for each row, or an "
            "object with a list for each",
            "type": ["array", "object", "null"],
        },
        "id": _ID,
        "parameters": _PLAIN_PARAMETERS,
    },
}
INFER: Schema = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _ID,
        "parameters": _V2_PARAMETERS,
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": _TENSOR,
            "description": "every input of the model, and for outputs that are about a target that target; where the "
            "service permits it, weights of the model, which have no batch",
        },
        "outputs": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": _NAME,
                    "parameters": {
                        "type": ["object", "null"],
                        "properties": {"binary_data": {"type": ["boolean", "null"]}},
                    },
                },
            },
        },
    },
}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_NON_FINITE_ROWS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "description": "rows of which some output is NaN or infinite",
}
PREDICT_ANSWER: Schema = {
    "type": "object",
    "required": ["model", "version", "members", "seed", "outputs"],
    "properties": {
        "model": _NAME,
        "version": _NAME,
        "members": {**_COUNT, "description": "members that were evaluated"},
        "seed": {"type": "integer"},
        "perturbation": {"type": "object", "description": "what to send for the same members again"},
        "id": {"type": "string"},
        "outputs": {"type": "object", "additionalProperties": {"type": "array"}},
        "non_finite": {
            "type": "array",
            "items": _NAME,
            "description": "outputs with null for what JSON has no word for",
        },
        "non_finite_rows": _NON_FINITE_ROWS,
    },
}
INFER_ANSWER: Schema = {
    "type": "object",
    "required": ["model_name", "model_version", "parameters", "outputs"],
    "properties": {
        "model_name": _NAME,
        "model_version": _NAME,
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "required": ["members"],
            "properties": {
                "members": {**_COUNT, "description": "members that were evaluated"},
                "seed": {"type": "integer", "description": "that they were drawn from, if they were"},
                "weights": {"const": "request", "description": "they came with the request"},
                "non_finite_rows": _NON_FINITE_ROWS,
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": _NAME,
                    "datatype": _NAME,
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "binary_data_size": {"type": "integer", "minimum": 0},
                            "non_finite": {"const": True},
                        },
                    },
                    "data": {"type": "array"},
                },
            },
        },
    },
}
INDEX: Schema = {"type": "object", "properties": {"ready": {"type": ["boolean", "null"]}}}
LOAD: Schema = {
    "type": "object",
    "properties": {"parameters": {"type": ["object", "null"], "maxProperties": 0}},
}
UNLOAD: Schema = {
    "type": "object",
    "properties": {
        "parameters": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {"unload_dependents": {"description": "no model here depends on another"}},
        }
    },
}
INDEX_ANSWER: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "version", "state", "reason"],
        "properties": {
            "name": _NAME,
            "version": _NAME,
            "state": {"enum": ["UNAVAILABLE", "LOADING", "READY"]},
            "reason": {"type": "string"},
        },
    },
}
STATISTICS: Schema = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {
        "model_stats": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "version", "inference_count", "execution_count", "inference_stats", "batch_stats"],
            },
        }
    },
}
CONFIG: Schema = {
    "type": "object",
    "required": ["name", "platform", "max_batch_size", "input", "output"],
    "properties": {"name": _NAME, "platform": _NAME, "max_batch_size": _COUNT},
}
