"""Request bodies as documents: which syntax a content type asks for, and what OpenAPI says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from service.definitions.syntax import parse_json, parse_yaml
from service.errors import UnsupportedMediaType

JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "application/x-yaml")


def _parser(content_type: str) -> Callable[[bytes], Any]:
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if charset in ("", "utf-8", "utf8"):
        if media_type.strip().lower() in JSON_TYPES:
            return parse_json
        if media_type.strip().lower() in YAML_TYPES:
            return parse_yaml
    allowed = ", ".join((*JSON_TYPES, *YAML_TYPES))
    raise UnsupportedMediaType(
        f"The body's Content-Type is {content_type[:100]!r}; expected one of {allowed}, in UTF-8."
    )


async def read_document(request: Request) -> Any:
    """The request's body, parsed after its content type: a dependency of endpoints that take a document."""
    parse = _parser(request.headers.get("content-type", ""))
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        # A few kilobytes unpack to gigabytes, and no definition needs it.
        raise UnsupportedMediaType(
            f"The body's Content-Encoding is {encoding[:100]!r}; send the body without compression."
        )
    # In a thread: the largest YAML takes half a second, and every other request would wait for it.
    return await run_in_threadpool(parse, await request.body())


async def read_optional_document(request: Request) -> Any:
    """The same of an endpoint that needs no body: without one, an empty mapping."""
    return await read_document(request) if await request.body() else {}


Document = Annotated[Any, Depends(read_document)]

OptionalDocument = Annotated[Any, Depends(read_optional_document)]


def request_body(schema: Mapping[str, Any], description: str, *, required: bool = True) -> dict[str, Any]:
    """What an endpoint that takes a `Document` says of its body in the OpenAPI document."""
    content = {media_type: {"schema": dict(schema)} for media_type in (*JSON_TYPES, *YAML_TYPES)}
    return {"requestBody": {"required": required, "description": description, "content": content}}
