"""/v1/search-spaces: the presets."""

from __future__ import annotations

from fastapi import APIRouter

from service.presets import queries
from service.presets.schemas import SearchSpaceList, SearchSpaceView
from service.rest.problems import declare

router = APIRouter(prefix="/v1/search-spaces", tags=["search spaces"])


@router.get("", response_model=SearchSpaceList)
def list_search_spaces() -> SearchSpaceList:
    """The presets: search spaces that a definition can name in `search.preset`."""
    return SearchSpaceList(items=queries.list_presets())


@router.get("/{name}", response_model=SearchSpaceView, responses=declare(404))
def get_search_space(name: str) -> SearchSpaceView:
    """One preset."""
    return queries.find_preset(name)
