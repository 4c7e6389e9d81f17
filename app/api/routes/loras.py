"""GET /loras: the LoRA files that jobs may name."""

from fastapi import APIRouter

from app.api.access import Caller
from app.api.dependencies import TheService
from app.api.problems import documented
from app.api.response_schemas import LORAS, answer
from app.jobs import Json
from app.models.loras.fitting import models_that_take
from app.models.loras.folder import UnusableLora

router = APIRouter()


@router.get(
    "/loras",
    tags=["service"],
    summary="LoRAs and the models that take them",
    responses={**answer(LORAS), **documented(401)},
)
def loras(service: TheService, _owner: Caller) -> Json:
    """Return the LoRA files of `FRAMEFIT_LORAS_DIR`, the names that a job's `loras` may have.

    `models` are those that are known to take the LoRA. A model whose files are not on this machine yet may
    take it, too. `unusable_because` says why a file of the folder cannot be applied.
    """
    return {"loras": [_view(service, name) for name in service.loras.names()]}


def _view(service: TheService, name: str) -> Json:
    view: Json = {
        "name": name,
        "size_bytes": None,
        "ranks": [],
        "layers": None,
        "left_out": None,
        "architectures": [],
        "models": [],
        "unusable_because": None,
    }
    try:
        file = service.loras.find(name)
    except UnusableLora as error:
        return {**view, "unusable_because": str(error)}
    if file is None:  # it was removed meanwhile
        return {**view, "unusable_because": f"LoRA {name} is gone"}
    return {
        **view,
        "size_bytes": file.size_bytes,
        "ranks": list(file.adapter.ranks),
        "layers": file.adapter.layers,
        "left_out": file.left_out,
        "architectures": [architecture.title for architecture in file.adapter.targets],
        "models": models_that_take(file, service.models, service.settings),
    }
