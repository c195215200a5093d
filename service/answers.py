"""What all answers of the REST API have in common. The answers themselves are in the `schemas` of each noun.

The server writes these models and its client reads them, so they import neither a web framework nor SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core.core_schema import ValidationInfo

from search_spaces.errors import Fault

T = TypeVar("T")


def _without_additional_properties(schema: dict[str, Any]) -> None:
    """The document of the API names what this version answers, and nothing more."""
    schema.pop("additionalProperties", None)


class Answer(BaseModel):
    """Base of all answers. A client keeps keys that only a newer server knows, and prints them unharmed."""

    model_config = ConfigDict(
        extra="allow", from_attributes=True, json_schema_extra=_without_additional_properties
    )

    @classmethod
    def read(cls, document: Any) -> Self:
        """The answer of a server that may be newer.

        Raises:
            ValidationError: A key is missing, or its value is of another type.
        """
        return cls.model_validate(document, context=_READING)

    def document(self) -> dict[str, Any]:
        """The answer as the server sent it, ready for `json.dumps`."""
        return self.model_dump(mode="json", exclude_unset=True, warnings=False)


_READING = {"newer": True}


def _known_or_as_sent(value: Any, known: ModelWrapValidatorHandler[Any], info: ValidationInfo) -> Any:
    try:
        return known(value)
    except ValidationError:
        if info.context is _READING and isinstance(value, str):
            return value
        raise


Open = Annotated[T, WrapValidator(_known_or_as_sent)]
"""One of several names. A newer server may know more of them: `Answer.read` keeps any other text."""


class ProblemFault(Answer):
    """One thing that is wrong, at one place in a document or in the query."""

    path: str = Field(description="Dotted: search.space.learning_rate.min")
    value: Any = None
    message: str
    allowed: str | None = None
    nearest: str | None = Field(
        default=None, description="The known name that is most similar to a misspelt one"
    )


class Problem(Answer):
    """RFC 9457. `faults` names everything that is wrong at once."""

    type: str = Field(description="The kind of problem, such as urn:nightsweep:problem:name-already-taken")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path of the request")
    faults: list[ProblemFault] = []


def problem(status: int, title: str, detail: str, path: str, faults: Sequence[Fault] = ()) -> Problem:
    """The problem with a request to `path`."""
    return Problem(
        type=f"urn:nightsweep:problem:{'-'.join(title.lower().split())}",
        title=title,
        status=status,
        detail=detail,
        instance=path.encode("utf-8", "replace").decode(),
        faults=[
            ProblemFault(path=f.path, value=f.value, message=f.message, allowed=f.allowed, nearest=f.nearest)
            for f in faults
        ],
    )
