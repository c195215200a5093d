"""What can go wrong on a worker, as one tree.

    WorkerError
    ├── ModelError      the base model or its tokenizer cannot be used
    ├── DataError       the train or eval data cannot be used
    │   ├── RowError    one row of it cannot be used
    │   └── LengthError `max_length` leaves nothing of it, or is more than the base has positions for
    ├── AdapterError    this recipe's adapter cannot be put on this base
    ├── ArtifactError   adapters or checkpoints cannot be written or read: the storage's trouble, no trial's
    ├── CheckpointError (in `workers.checkpoint_format`) a checkpoint is not what was written
    └── RecipeLengthError   `max_length` cannot be used, and is this recipe's own

The first two are faults of the study, not of a trial: every trial of the study would fail alike, so a
worker answers with an outcome that is `fatal_to_study`. A message is made of whole sentences that say what is
wrong, where (file and line), what was expected and what to do, because it reaches a person as it stands
in REST, the command line and the dashboard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONGEST_TEXT = 500
"""Characters of a library's words: some quote the whole text they could not take."""


class WorkerError(Exception):
    """Base of everything a worker raises on purpose."""

    def __str__(self) -> str:
        # A name in the data may hold half of a surrogate pair, which cannot be shown or stored.
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class ModelError(WorkerError):
    """The base model or its tokenizer is missing, unsafe, incomplete or corrupt."""


class DataError(WorkerError):
    """The train or eval data is missing, malformed, or has nothing to train on."""


class AdapterError(WorkerError):
    """The recipe's `target_modules` matches no layer of the base. Another trial's recipe may."""


class ArtifactError(WorkerError):
    """Adapters or checkpoints cannot be written or read. The trial can go on once they can."""


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
def faults_of_libraries(where: Callable[[], str]) -> Iterator[None]:
    """The one place where what libraries raise over data becomes a fault of the data.

    Readers, chat templates and tokenizers raise whatever their authors chose, for a row that is not what they
    expect. None of it is a trial's: every trial reads the same rows. A machine without memory and the end of
    the process are not the data's fault.

    Args:
        where: Asked at a fault: the place, and what was being done.

    Raises:
        RowError: Something was raised that is not this package's own.
    """
    try:
        yield
    except (WorkerError, MemoryError):
        raise
    except BaseException as error:
        # A tokenizer's panic is none of Python's exceptions, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())
        text = f"{text[:_LONGEST_TEXT]}..." if len(text) > _LONGEST_TEXT else text.rstrip(".")
        kind = type(error).__name__
        kind = f"{type(error).__module__}.{kind}" if kind.islower() else kind  # `zlib.error`
        raise RowError(f"{where()}: {kind}: {text or 'no reason given'}.") from error
