"""The local files that a definition names: found, resolved and confined before it is accepted.

Workers read what a definition names with the rights of the service, so every local path must lie in
`NIGHTSWEEP_DATA_ROOTS`, after symbolic links and `..` are followed. The accepted definition holds the
resolved absolute path, so that a link changed later leads nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown
from search_spaces.parsing.plain import LONGEST_PATH
from search_spaces.values.hub_ids import is_hub_id

_MOST_NAMES = 1_000
"""Files of a folder among which a missing one's nearest name is looked for; in a larger folder it is not."""
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
READER_NAMES = frozenset(
    {
        *("arrow", "audiofolder", "cache", "conll", "csv", "eval", "fasta", "fastq", "genbank", "harbor"),
        *("hdf5", "iceberg", "imagefolder", "json", "lance", "meshfolder", "mmcif", "niftifolder", "pandas"),
        *("parquet", "pdb", "pdffolder", "sql", "text", "tsfile", "videofolder", "vortex", "webdataset"),
        *("xml", "generator", "spark", "buckets"),
    }
)
"""What the `datasets` library takes for a kind of file in place of a hub id: it would then read the current
folder of the worker. The worker asks the library itself; this is to say so at submission."""
_HUB_FORM = "a Hugging Face hub id (`organisation/name`)"


def resolve_paths(
    document: Any, roots: Sequence[Path], may_be_absent: Collection[str] = ()
) -> tuple[Any, list[Fault]]:
    """A definition with its local paths resolved, and everything wrong with them.

    Looks only at `model.id`, `data.train` and `data.eval`; whatever is not text there is left to
    `parse_definition`. The document is not changed.

    Args:
        document: as submitted.
        roots: the folders that local files must lie in, resolved themselves.
        may_be_absent: `data.train`, `data.eval`, where the file need not be there yet.
    """
    if not isinstance(document, Mapping):
        return document, []
    resolved, faults = dict(document), []
    model, data = document.get("model"), document.get("data")
    if isinstance(model, Mapping) and _is_path(model.get("id")):
        found, fault = _bounded(model["id"], "model.id") or _find_model(model["id"], roots)
        resolved["model"] = {**model, "id": found}
        faults += [fault] if fault else []
    if isinstance(data, Mapping):
        resolved["data"] = dict(data)
        for part in ("train", "eval"):
            source = data.get(part)
            if isinstance(source, str) and _is_path(source):
                path = f"data.{part}"
                found, fault = _bounded(source, path) or find_data(
                    source, path, roots, may_be_absent=path in may_be_absent
                )
                resolved["data"][part] = found
            else:
                fault = _check_hub(source, f"data.{part}.hub")
            faults += [fault] if fault else []
    return resolved, faults


def _is_path(value: Any) -> bool:
    # Other text is a fault already: empty, or of characters that no path has.
    return isinstance(value, str) and value != "" and "\x00" not in value and _is_unicode(value)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bounded(name: str, path: str) -> tuple[str, Fault] | None:
    """The fault of a text that is longer than any path, which would take seconds to follow."""
    if len(name) <= LONGEST_PATH:
        return None
    allowed = f"at most {LONGEST_PATH:,} characters"
    return shown(name), _fault(path, name, f"is too long, with {len(name):,} characters", allowed)


def _find_model(name: str, roots: Sequence[Path]) -> tuple[str, Fault | None]:
    local = name.startswith((".", "/", "~"))
    found = _locate(name, roots)
    if found is not None and found.is_dir() and _inside(found, roots):
        return str(found), _link_outside(name, found, roots)
    if not local and is_hub_id(name):
        return name, None
    path = "model.id"
    if not local:
        message = f"is neither a folder in the data roots (NIGHTSWEEP_DATA_ROOTS) nor {_HUB_FORM}"
        return name, _fault(path, name, message, f"{_HUB_FORM}, or a folder in {_listed(roots)}")
    if found is None or not _inside(found, roots):
        return name, _missing_or_outside(path, name, found, roots, "a model's folder")
    return name, _fault(path, name, "is a file, not a model's folder", "a folder")


def _link_outside(name: str, folder: Path, roots: Sequence[Path]) -> Fault | None:
    """A model's folder may hold links, as the hub's cache does, but only to files in the data roots."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return _fault("model.id", name, "cannot be read by the server", "a readable folder")
    for entry in _links(folder):
        if not _inside(Path(os.path.realpath(entry)), roots):
            message = f"contains the link {shown(entry.name)!r}, which points outside the data roots"
            return _fault("model.id", name, message, f"a folder whose files are in {_listed(roots)}")
    return None


def _links(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.is_symlink()), key=lambda entry: entry.name)


def find_data(
    name: str, path: str, roots: Sequence[Path], *, may_be_absent: bool = False
) -> tuple[str, Fault | None]:
    """The file of data that a path leads to, and what is wrong with it.

    Args:
        name: the path, as a definition has it.
        path: where in the definition: `data.train` or `data.eval`.
        roots: the folders that it must lie in, resolved themselves.
        may_be_absent: it need not be there yet, but where it would be must be inside the roots.
    """
    found = _locate(name, roots)
    if found is None and may_be_absent:
        found = next((aim for aim in _aims(name, roots) if _inside(aim, roots)), None)
        if found is not None and found.name.lower().endswith(DATA_SUFFIXES):
            return str(found), None
    if found is None or not _inside(found, roots):
        return name, _missing_or_outside(path, name, found, roots, "a data file")
    if not found.name.lower().endswith(DATA_SUFFIXES):
        message = f"is not a supported type of file ({found.suffix or 'no suffix'})"
        return name, _fault(path, name, message, ", ".join(DATA_SUFFIXES))
    if not found.is_file():
        return name, _fault(path, name, "is not a regular file", "a file")
    if not os.access(found, os.R_OK):
        return name, _fault(path, name, "cannot be read by the server", "a readable file")
    return str(found), None


def _check_hub(source: Any, path: str) -> Fault | None:
    """A hub id must look like one: the `datasets` library would read a folder or a URL, too."""
    hub = source.get("hub") if isinstance(source, Mapping) else None
    if not isinstance(hub, str) or hub == "" or (is_hub_id(hub) and hub not in READER_NAMES):
        return None
    return _fault(path, hub, f"is not {_HUB_FORM}", _HUB_FORM)


def _locate(name: str, roots: Sequence[Path]) -> Path | None:
    """Where a path leads: an existing one inside a root first, then any existing one, then None."""
    written = Path(os.path.expanduser(name))
    candidates = [written] if written.is_absolute() else [root / written for root in roots]
    try:
        existing = [Path(real) for real in map(os.path.realpath, candidates) if os.path.exists(real)]
    except OSError:  # a name in it is longer than the file system has, or links lead in a circle
        return None
    return next((c for c in existing if _inside(c, roots)), existing[0] if existing else None)


def _aims(name: str, roots: Sequence[Path]) -> list[Path]:
    """Where a path would lead, whether anything is there or not."""
    written = Path(os.path.expanduser(name))
    aims = [written] if written.is_absolute() else [root / written for root in roots]
    return [Path(os.path.realpath(aim)) for aim in aims]


def _inside(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _missing_or_outside(path: str, name: str, found: Path | None, roots: Sequence[Path], what: str) -> Fault:
    real = _aims(name, roots)
    allowed = f"{what} in {_listed(roots)}"
    # Said of every path outside, there or not: who submits learns nothing of the server's other files.
    if found is not None or not any(_inside(aim, roots) for aim in real):
        return _fault(path, name, "is outside the data roots (NIGHTSWEEP_DATA_ROOTS)", allowed)
    return _fault(path, name, "does not exist", allowed, nearest=_nearest_file(name, real, roots))


def _nearest_file(name: str, aims: Sequence[Path], roots: Sequence[Path]) -> str | None:
    for aim in aims:
        folder = aim.parent
        if _inside(folder, roots) and os.path.isdir(folder) and os.access(folder, os.R_OK):
            with os.scandir(folder) as entries:
                names = [entry.name for entry in islice(entries, _MOST_NAMES + 1)]
            nearest = nearest_name(aim.name, names) if len(names) <= _MOST_NAMES else None
            if nearest is not None:
                return os.path.join(os.path.dirname(name), nearest)
    return None


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(str(root) for root in roots)


def _fault(path: str, value: str, message: str, allowed: str, nearest: str | None = None) -> Fault:
    return Fault(path=path, value=shown(value), message=message, allowed=allowed, nearest=nearest)
