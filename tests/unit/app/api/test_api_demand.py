"""A job whose denoising fits no device is refused before it is queued, and the refusal names the stage."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from adaptive.planning.weight_placement import ComponentSize, Stage
from app.config import Settings
from app.models.entries import ModelEntry
from app.models.requirements import DenoiseCurve, ModelRequirements

GIB = 2**30
CARD = {"name": "cuda:0", "kind": "cuda", "total_bytes": 8 * GIB, "free_bytes": 8 * GIB}


def requirements(bytes_a_position: float) -> Callable[[ModelEntry], ModelRequirements]:
    part = ComponentSize("transformer", GIB, (Stage.DENOISE,), GIB // 8)
    curve = DenoiseCurve(0, bytes_a_position, 0, guidance_in_batch=True)
    return lambda _entry: ModelRequirements((part,), (curve,))


@pytest.mark.parametrize(("bytes_a_position", "status"), [(1.0, 202), (float(GIB), 422)])
def test_denoising_that_fits_no_device_is_refused_by_name(
    client_of: Callable[..., TestClient],
    settings: Settings,
    picture: bytes,
    bytes_a_position: float,
    status: int,
) -> None:
    client = client_of(settings, load_requirements=requirements(bytes_a_position))
    client.app.state.service.store.register_worker("w", CARD)  # type: ignore[attr-defined]
    answer = client.post("/generate", data={"prompt": "x"}, files={"image": ("a.jpg", picture)})
    assert answer.status_code == status
    if status == 422:
        body = answer.json()
        assert (body["code"], body["stage"]) == ("does_not_fit", "denoise")
        assert body["needed_bytes"] > body["available_bytes"] > 0
        assert "denoising" in body["detail"]
