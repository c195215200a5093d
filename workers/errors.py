"""What can go wrong on a worker, as one tree.

    WorkerError
    ├── ModelError      the base model or its tokenizer cannot be used
    ├── DataError       the train or eval data cannot be used
    │   ├── RowError    one row of it cannot be used
    │   └── LengthError `max_length` leaves nothing of it, or is more than the base has positions for
    ├── AdapterError    this recipe's adapter cannot be put on this base
    ├── UnusableAdapterError  an adapter that is to be evaluated is gone, or is none of this base and task
    ├── ArtifactError   adapters or checkpoints cannot be written or read: the storage's trouble, no trial's
    ├── CheckpointError (in `workers.artifacts.checkpoint_format`) a checkpoint is not what was written
    ├── PluginError     a metric or loss of the study's own cannot be loaded, or no trial can do without it
    ├── LossError       a loss of the study's own cannot be used in this trial
    │   └── LossNotFiniteError  it, or its gradient, is not finite
    └── RecipeLengthError   `max_length` cannot be used, and is this recipe's own

The first two and `PluginError` are faults of the study, not of a trial: every trial of the study would fail
alike, so a worker answers with an outcome that is `fatal_to_study`. A message is made of whole sentences that
say what is wrong, where (file and line), what was expected and what to do, because it reaches a person as it
stands in REST, the command line and the dashboard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from search_spaces.wording import shortened

_LONGEST_MESSAGE = 2_000
"""Characters of a message."""
_LONGEST_TEXT = 300
"""Characters of a library's words."""
_QUOTED = re.compile(r"(['\"`])(.*?)\1", re.DOTALL)
_PLAIN = re.compile(r"[\w.+-]{0,20}")
_NAME = re.compile(r"[\w<>|. -]{1,60}")


class WorkerError(Exception):
    """Base of everything a worker raises on purpose."""

    def __str__(self) -> str:
        # Names in the data may be long, or hold half of a surrogate pair, which cannot be shown or stored.
        return shortened(super().__str__(), _LONGEST_MESSAGE)


class ModelError(WorkerError):
    """The base model or its tokenizer is missing, unsafe, incomplete or corrupt."""


class DataError(WorkerError):
    """The train or eval data is missing, malformed, or has nothing to train on."""


class AdapterError(WorkerError):
    """The recipe's `target_modules` matches no layer of the base. Another trial's recipe may."""


class UnusableAdapterError(WorkerError):
    """The adapter that is to be evaluated is not there any more, or does not fit this base and task."""


class ArtifactError(WorkerError):
    """Adapters or checkpoints cannot be written or read. The trial can go on once they can."""


class PluginError(WorkerError):
    """A metric or loss of the study's own may not be used, is not there, or goes wrong in every trial."""


class LossError(WorkerError):
    """A loss of the study's own goes wrong in this trial. A trial with another loss may do well."""


class LossNotFiniteError(LossError):
    """A loss of the study's own, or its gradient, is not finite, of answers that are."""


class RecipeLengthError(WorkerError):
    """The recipe's own `max_length` cannot be used with this data or base. Another trial's may."""

    @classmethod
    def of(cls, error: LengthError) -> RecipeLengthError:
        """The fault of a study's `data.max_length`, said of a recipe's."""
        text = str(error).replace("data.max_length", "the recipe's max_length")
        return cls(text[0].upper() + text[1:])


class LengthError(DataError):
    """`max_length` cuts away everything that carries loss, or is more than the base has positions for."""


class RowError(DataError):
    """One row is not what its format needs. Says what is wrong with it; its reader adds file and line."""


@contextmanager
def faults_of_libraries(
    where: Callable[[], str],
    fault: type[DataError] | type[ModelError] = RowError,
    *,
    passing: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """The one place where what libraries raise over data or a model becomes a fault of the study.

    Readers, configurations, chat templates and tokenizers raise whatever their authors chose, over what they
    do not expect. None of it is a trial's: every trial reads the same files. A lack of memory passes, with
    the place as its note, because the caller that limits memory explains it
    (`workers.device.memory.limited_memory`). So do the end of the process and its interruption.

    Args:
        where: Asked at a fault: the place, and what was being done.
        fault: Raised in place of what the library raised.
        passing: Passes, too.

    Raises:
        DataError, ModelError: Something was raised that is not this package's own.
    """
    try:
        yield
    except WorkerError:
        raise
    except passing:
        raise
    except MemoryError as error:
        error.add_note(where())
        raise
    except BaseException as error:
        # A panic in Rust is none of Python's exceptions, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kind = type(error).__name__
        kind = f"{type(error).__module__}.{kind}" if kind.islower() else kind  # `zlib.error`
        text = without_values(str(error)).rstrip(".")
        raise fault(f"{where()}: {kind}: {text or 'no reason given'}.") from error


def without_values(text: str) -> str:
    """A library's words without the values that they quote, on one line and shortened.

    They may quote a file that nobody was to see. Names in quotes stay, as of a missing attribute or column.
    """
    return shortened(" ".join(_QUOTED.sub(_name_only, text).split()), _LONGEST_TEXT)


def described(value: object) -> str:
    """A value of a file, as it may stand in a message: itself where it is short and plain, else its kind."""
    return repr(value) if _PLAIN.fullmatch(str(value)) else f"of type {type(value).__name__}"


def _name_only(quoted: re.Match[str]) -> str:
    return quoted.group() if _NAME.fullmatch(quoted.group(2)) else f"{quoted.group(1)}…{quoted.group(1)}"
