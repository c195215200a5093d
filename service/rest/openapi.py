"""The OpenAPI document: FastAPI's, with our problems, security schemes and the definition's schema."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.answers import Problem
from service.definitions.json_schema import definition_schemas


def describe(app: FastAPI, *, guarded: bool) -> dict[str, Any]:
    """FastAPI's document, with our problems in place of its own shape for 422."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        # Without a key of the server's own, one is needed as soon as anybody has been given one.
        security: list[dict[str, list[str]]] = [{"bearer": []}, {"basic": []}, *([] if guarded else [{}])]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        published = definition_schemas()
        assert not schemas.keys() & published.keys(), "two schemas of one name"
        schemas |= {**problem.pop("$defs"), "Problem": problem, **published}
        for path in document["paths"].values():
            for operation in path.values():
                if "401" in operation["responses"]:
                    operation["security"] = security
                for parameter in operation.get("parameters", []):
                    parameter["schema"] = _without_null(parameter["schema"])
        document["components"]["securitySchemes"] = {
            scheme: {"type": "http", "scheme": scheme} for scheme in ("bearer", "basic")
        }
        app.openapi_schema = document
    return app.openapi_schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema. An optional one is `X | None` in Python, but a query cannot contain a null."""
    forms = [form for form in schema.get("anyOf", []) if form != {"type": "null"}]
    if len(forms) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **forms[0]}
