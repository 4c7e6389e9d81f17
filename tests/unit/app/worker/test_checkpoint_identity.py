"""Which fields of a request a checkpoint belongs to: one that changes no latents must not cost its steps."""

from app.api.requests.schemas import REDECODE_FIELDS
from app.jobs import MEASURED, JobSpec
from app.worker.denoise import identity

# What the latents depend on. Another value of any other field leaves them as they are.
OF_THE_LATENTS = {
    "prompt": "q",
    "negative_prompt": "n",
    "model": "other",
    "width": 96,
    "height": 96,
    "num_frames": 17,
    "fit": "contain",
    "gravity": "north",
    "fps": 9,
    "num_inference_steps": 4,
    "guidance_scale": 2.0,
    "seed": 6,
    "loras": [{"name": "style"}],
    "keyframes": [{"frame": 8}],
    "fs": 3,
    "loop": True,
}
OF_NO_LATENTS = {
    "image_size": "8x8",
    "last_image_size": "8x8",
    "keyframe_sizes": ["8x8"],
    "continue_from": "a-job",
    "priority": 1,
    "decode_strategy": "chunked",
    "frames_per_chunk": 1,
    "exact_only": False,
    "memory_budget_bytes": 1,
    "embed_metadata": False,
    "webhook_url": "http://example.com",
}
ASKED = {
    "prompt": "p",
    "model": "m",
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "fps": 8,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "seed": 5,
}


def test_a_checkpoint_belongs_to_the_fields_that_change_latents_and_to_no_others() -> None:
    assert OF_THE_LATENTS.keys() | OF_NO_LATENTS.keys() == set(JobSpec.model_fields), (
        "say where a field belongs"
    )
    assert OF_NO_LATENTS.keys() >= {*REDECODE_FIELDS, *MEASURED}
    same = identity.request_digest(JobSpec.model_validate(ASKED))
    changed = {
        name
        for name, value in {**OF_THE_LATENTS, **OF_NO_LATENTS}.items()
        if identity.request_digest(JobSpec.model_validate({**ASKED, name: value})) != same
    }
    assert changed == OF_THE_LATENTS.keys()


def test_a_request_without_newer_fields_has_the_digest_of_earlier_versions() -> None:
    digest = "561dee74aabfe3e06804fad66fdaba1b7f26fcb993f127c6c0c5502207cb4c1a"
    assert identity.request_digest(JobSpec.model_validate(ASKED)) == digest
