"""Write the schemas of openapi.json from the types that the service decodes and encodes: `python -m serve.openapi`.

Everything before `schemas`, the last member, is written by hand. Add the type of a new request or response body to
TYPES. The service only reads the file.
"""

import json
from pathlib import Path

import msgspec

from serve.release import Version
from serve.routes.images import PredictRequest
from serve.routes.open_inference import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata
from serve.routes.predict import PredictResponse
from serve.server.problem import InferenceError, Problem

FILE = Path(__file__).with_name("openapi.json")
SCHEMAS = '    "schemas": '
TYPES = (
    PredictRequest,
    PredictResponse,
    Problem,
    ServerMetadata,
    ModelMetadata,
    InferenceRequest,
    InferenceResponse,
    InferenceError,
)


def document() -> str:
    """Return the text of openapi.json: the part written by hand unchanged, the schemas generated."""
    _, schemas = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    schemas["PredictRequest"] |= {"minProperties": 1, "maxProperties": 1}  # no type expresses this
    schemas["Version"] = msgspec.json.schema(Version)  # of the path parameter
    by_hand, _, _ = FILE.read_text("utf-8").partition(SCHEMAS)
    return by_hand + SCHEMAS + json.dumps(schemas, indent=2, ensure_ascii=False).replace("\n", "\n    ") + "\n  }\n}\n"


if __name__ == "__main__":
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(document(), "utf-8")
    temporary.replace(FILE)
