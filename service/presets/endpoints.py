"""/v1/search-spaces"""

from __future__ import annotations

from fastapi import APIRouter

from service.presets import queries
from service.presets.schemas import SearchSpaceList, SearchSpaceView
from service.rest.problems import declare

router = APIRouter(prefix="/v1/search-spaces", tags=["search spaces"])


@router.get("", response_model=SearchSpaceList)
def list_search_spaces() -> SearchSpaceList:
    """The named search spaces that a definition can use as `search.preset`."""
    return SearchSpaceList(items=queries.list_search_spaces())


@router.get("/{name}", response_model=SearchSpaceView, responses=declare(404))
def get_search_space(name: str) -> SearchSpaceView:
    """One named search space."""
    return queries.get_search_space(name)
