"""/v1/models: the models in the format of OpenAI's API."""

from fastapi import APIRouter

from app.api.access import Caller
from app.api.dependencies import TheService
from app.api.problems import Problem
from app.api.response_schemas import OPENAI_MODEL, OPENAI_MODELS, answer
from app.api.routes.openai import errors
from app.jobs import Json

router = APIRouter(prefix="/v1/models", tags=["openai"])


def _view(name: str) -> Json:
    # The format has a time of creation. A model's is not known, so it is the epoch's start.
    return {"id": name, "object": "model", "created": 0, "owned_by": "framefit"}


@router.get("", summary="List models", responses={**answer(OPENAI_MODELS), **errors(401)})
def list_models(service: TheService, _owner: Caller) -> Json:
    """Return the names of the models, the default first; `GET /models` has their rules."""
    return {"object": "list", "data": [_view(name) for name in service.models]}


@router.get("/{name:path}", summary="A model", responses={**answer(OPENAI_MODEL), **errors(401, 404)})
def get_model(name: str, service: TheService, _owner: Caller) -> Json:
    """Return one model's name."""
    if name not in service.models:
        raise Problem(404, "unknown_model", f"there is no model {name[:100]!r}")
    return _view(name)
