"""A model folder that cannot be loaded: its reason is at doctor, /readyz, GET /models and the request.

Each case begins with a tiny pipeline's folder that works, and breaks one thing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from app.config import Settings
from app.doctor import CheckResult, machine
from app.models import profile_tracer, profiles
from app.models.checks import faults
from app.models.checks.faults import find_fault
from app.models.checks.model_folder import check_model
from app.models.components import ModelUnavailable
from app.models.entries import ModelEntry, load_models
from app.models.profile_tracer import Tracing
from app.store import open_store
from tests.served_model import ENTRY
from tests.unit.app.conftest import Clock, traced

LTX = "LTXImageToVideoPipeline"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 335544320\n".format("0" * 64)
VAE = "vae/diffusion_pytorch_model.safetensors"
Break = Callable[[Path], Path | None]


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that works."""
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    copy: Path = shutil.copytree(whole_folder, tmp_path / "model")
    return copy


def settings_for(folder: Path, source: Path, **changes: str) -> Settings:
    text = ENTRY.format(source=source, dtype="float32")
    for old, new in changes.items():
        text = text.replace(
            f'{old} = "{LTX if old == "pipeline" else "AutoencoderKLLTXVideo"}"', f'{old} = "{new}"'
        )
    file = folder.parent / "models.toml"
    file.write_text(text)
    data_dir = folder.parent / "data"
    data_dir.mkdir(exist_ok=True)
    return Settings(data_dir=data_dir, models_file=file, model="mine", reserve_bytes=0)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def one_file(folder: Path) -> Path:
    return folder / VAE


def no_folder(folder: Path) -> Path:
    return folder.parent / "elsewhere"


def folder_above(folder: Path) -> Path:
    (folder.parent / "above").mkdir()
    folder.rename(folder.parent / "above" / "inner")
    return folder.parent / "above"


def pointers(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.write_text(POINTER)


def pointer_of_a_tokenizer(folder: Path) -> None:
    next(path for path in (folder / "tokenizer").iterdir() if path.name == "tokenizer.json").write_text(
        POINTER
    )


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def damaged_index(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": ')


def bytes_for_a_config(folder: Path) -> None:
    (folder / "vae" / "config.json").write_bytes(b"\xff\xfe{}")


def no_vae_weights(folder: Path) -> None:
    (folder / VAE).unlink()


def no_component(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def another_model(folder: Path) -> None:
    change_json(folder / "model_index.json", _class_name="WanPipeline", vae=["diffusers", "AutoencoderKLWan"])


def a_language_model(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "text_encoder":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder / "text_encoder").iterdir():
        path.rename(folder / path.name)
    (folder / "text_encoder").rmdir()


def unknown_class(folder: Path) -> None:
    change_json(folder / "model_index.json", transformer=["diffusers", "LTX9VideoTransformer"])


def cut_short(folder: Path) -> None:
    with (folder / VAE).open("r+b") as file:
        file.truncate((folder / VAE).stat().st_size - 1000)


def cut_within_the_header(folder: Path) -> None:
    with (folder / VAE).open("r+b") as file:
        file.truncate(100)


def too_long(folder: Path) -> None:
    with (folder / VAE).open("ab") as file:
        file.write(b"\0" * 8)


def a_web_page(folder: Path) -> None:
    (folder / VAE).write_text("<!DOCTYPE html><html>Sign in to download this file" + " " * 2000)


def unknown_dtype(folder: Path) -> None:
    change_header(folder / VAE, lambda header: next(iter(header.values())).update(dtype="Q4_K"))


def damaged_header(folder: Path) -> None:
    change_header(folder / VAE, lambda header: next(iter(header.values())).update(shape=[3]))


def change_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def sharded(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The transformer in two files with an index; returns the index's path and content."""
    part = folder / "transformer"
    whole = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    places = {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        shard = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, part / shard, {"format": "pt"})
        places.update(dict.fromkeys(chosen, shard))
    whole.unlink()
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    path = part / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path, index


def shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def shard_of_another_model(folder: Path) -> None:
    sharded(folder)
    other = folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shutil.copy(folder / VAE, other)


def index_lists_more_bytes(folder: Path) -> None:
    path, index = sharded(folder)
    index["metadata"]["total_size"] += 12_345
    path.write_text(json.dumps(index))


def deeply_nested_config(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("[" * 100_000)


def deeply_nested_header(folder: Path) -> None:
    text = b'{"a":' * 100_000
    (folder / VAE).write_bytes(len(text).to_bytes(8, "little") + text)


def index_with_another_metadata(folder: Path) -> None:
    path, index = sharded(folder)
    path.write_text(json.dumps({**index, "metadata": ["pt"]}))


CASES: dict[str, tuple[Break, str]] = {
    "one_file": (one_file, "its source is the file diffusion_pytorch_model.safetensors"),
    "no_folder": (no_folder, "does not exist on this machine"),
    "folder_above": (folder_above, "has no model_index.json: name its folder inner instead"),
    "lfs_pointers": (pointers, "text_encoder/model.safetensors is a Git LFS pointer of 134 bytes"),
    "lfs_pointer_of_a_tokenizer": (pointer_of_a_tokenizer, "tokenizer/tokenizer.json is a Git LFS pointer"),
    "no_index": (no_index, "has no model_index.json: it is no model"),
    "damaged_index": (damaged_index, "model_index.json is damaged"),
    "bytes_for_a_config": (bytes_for_a_config, "vae/config.json is damaged"),
    "no_vae_weights": (no_vae_weights, f"the weights of vae are missing: {VAE} does not exist"),
    "no_component": (no_component, "its folder text_encoder/ is missing"),
    "another_model": (another_model, "names the VAE AutoencoderKLWan, the entry AutoencoderKLLTXVideo"),
    "a_language_model": (a_language_model, "has no model_index.json but the file model.safetensors"),
    "unknown_class": (unknown_class, "diffusers has no class 'LTX9VideoTransformer'"),
    "cut_short": (cut_short, f"{VAE} is cut short: it has"),
    "cut_within_the_header": (cut_within_the_header, f"{VAE} is cut short: it has 100 bytes"),
    "too_long": (too_long, "but its header describes"),
    "a_web_page": (a_web_page, f"{VAE} is no safetensors file"),
    "unknown_dtype": (unknown_dtype, "of dtype Q4_K, which cannot be loaded"),
    "damaged_header": (damaged_header, f"{VAE} has a damaged header"),
    "shard_missing": (shard_missing, "diffusion_pytorch_model-00002-of-00002.safetensors is missing"),
    "shard_of_another_model": (shard_of_another_model, "has no tensor"),
    "index_lists_more_bytes": (
        index_lists_more_bytes,
        "diffusion_pytorch_model.safetensors.index.json lists",
    ),
    "deeply_nested_config": (deeply_nested_config, "vae/config.json is damaged"),
    "deeply_nested_header": (deeply_nested_header, f"{VAE} has a damaged header"),
    "index_with_another_metadata": (index_with_another_metadata, "index.json is damaged"),
}


@pytest.fixture
def picture_file(picture: bytes) -> dict[str, tuple[str, bytes]]:
    return {"image": ("photo.jpg", picture)}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_folder_gives_its_reason_at_four_places(
    case: str, folder: Path, picture_file: dict[str, tuple[str, bytes]], client_of: Callable[..., TestClient]
) -> None:
    breaks, words = CASES[case]
    settings = settings_for(folder, breaks(folder) or folder)

    finding = next(iter(machine.models(settings)))
    assert finding.standing is CheckResult.WRONG
    assert words in finding.detail

    client = client_of(settings, load_profile=None)
    worker(settings)
    ready = client.get("/readyz").json()
    reason = ready["unavailable"]["mine"]
    assert words in reason
    assert ready["models"]["mine"] is False
    assert (ready["ready"], ready["models"]["tiny"]) == (True, True), "the other models can be used"

    (shown,) = (one for one in client.get("/models").json()["models"] if one["name"] == "mine")
    assert (shown["available"], shown["unavailable_because"]) == (False, reason)

    answer = client.post("/generate", data={"model": "mine", "prompt": "a bear"}, files=picture_file)
    assert (answer.status_code, answer.json()["code"]) == (422, "model_unavailable")
    assert answer.json()["detail"] == f"model mine cannot be used: {reason}"
    assert 'framefit_model_available{model="mine"} 0.0' in client.get("/metrics").text


def worker(settings: Settings) -> None:
    """A worker with a fresh heartbeat."""
    with closing(open_store(settings)) as store:
        store.register_worker("here", {"name": "cpu", "kind": "cpu"})


def test_only_a_service_without_any_model_that_can_be_used_is_not_ready(
    folder: Path, client_of: Callable[..., TestClient]
) -> None:
    no_index(folder)
    settings = settings_for(folder, folder)
    client = client_of(settings, load_profile=None)
    with closing(open_store(settings)) as store:
        store.register_worker("here", {"name": "cpu", "kind": "cpu", "models": ["mine"]})
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert "model_index.json" in answer.json()["unavailable"]["mine"]


@pytest.mark.parametrize(
    "form", ["whole", "sharded", "index_counts_another_width", "in_half", "variant", "links"]
)
def test_a_folder_that_loads_is_not_refused(folder: Path, form: str) -> None:
    from diffusers import LTXImageToVideoPipeline

    settings = settings_for(folder, folder)
    entry = load_models(settings)["mine"]
    options: dict[str, Any] = {}
    if form == "sharded":
        sharded(folder)
    elif form == "index_counts_another_width":
        path, index = sharded(folder)
        index["metadata"]["total_size"] *= 2
        path.write_text(json.dumps(index))
    elif form == "in_half":
        save_file(
            {name: t.half() for name, t in load_file(folder / VAE).items()}, folder / VAE, {"format": "pt"}
        )
    elif form == "variant":
        path = folder / VAE
        path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
        entry, options = entry.model_copy(update={"variant": "fp16"}), {"variant": "fp16"}
    elif form == "links":  # as the hub's cache keeps files
        path = folder / VAE
        path.rename(folder.parent / "blob")
        path.symlink_to(folder.parent / "blob")
    check_model(entry, settings)
    LTXImageToVideoPipeline.from_pretrained(folder, **options)


def test_an_entry_that_names_what_diffusers_does_not_have_is_refused(folder: Path) -> None:
    entry = load_models(settings_for(folder, folder, pipeline="LTX9Pipeline"))["mine"]
    fault = find_fault(entry, settings_for(folder, folder))
    assert fault is not None
    assert "diffusers has no class 'LTX9Pipeline'" in fault.reason


def test_every_model_that_ships_can_be_used(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert {
        name: find_fault(entry, settings) for name, entry in load_models(settings).items()
    } == dict.fromkeys(load_models(settings))


def test_a_repaired_folder_is_noticed_without_a_restart(
    folder: Path, whole_folder: Path, client_of: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(folder)
    settings = settings_for(folder, folder)
    client = client_of(settings, load_profile=None)
    assert "cut short" in client.get("/readyz").json()["unavailable"]["mine"]
    shutil.copy(whole_folder / VAE, folder / VAE)
    monkeypatch.setattr(faults, "RECHECK_SECONDS", 0.0)
    assert client.get("/readyz").json()["unavailable"] == {}
    pointers(folder)
    assert "Git LFS" in client.get("/readyz").json()["unavailable"]["mine"]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that the profiler tried to trace, in order."""
    names: list[str] = []
    trace = profile_tracer._traced

    def noted(settings: Settings, entry: ModelEntry) -> Any:
        names.append(entry.name)
        return trace(settings, entry)

    monkeypatch.setattr(profile_tracer, "_traced", noted)
    return names


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace takes no time: its result is the profile of round numbers."""
    monkeypatch.setattr(profile_tracer, "_traced", lambda _settings, entry: traced(entry))


def test_the_profiler_waits_for_a_broken_folder_and_traces_it_once_it_is_repaired(
    folder: Path, whole_folder: Path, quickly: None, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    del quickly
    no_vae_weights(folder)
    settings = settings_for(folder, folder)
    entry = load_models(settings)["mine"]
    clock = Clock()
    tracing = Tracing(settings, {"mine": entry}, clock)
    with caplog.at_level(logging.ERROR):
        for _ in range(50):
            tracing.step()
            clock.now += 60
    assert tried == []
    assert len([record for record in caplog.records if "model_unavailable" in record.message]) == 1
    shutil.copy(whole_folder / VAE, folder / VAE)
    tracing.step()
    assert (tried, tracing.done) == (["mine"], True)
    assert profiles.load(settings, entry) is not None
    assert find_fault(entry, settings) is None


def test_what_only_tracing_shows_is_a_reason_everywhere_until_the_folder_changes(
    folder: Path, tried: list[str], picture_file: dict[str, Any], client_of: Callable[..., TestClient]
) -> None:
    change_json(folder / "vae" / "config.json", decoder_block_out_channels=[8, 8])
    settings = settings_for(folder, folder)
    entry = load_models(settings)["mine"]
    tracing = Tracing(settings, {"mine": entry}, Clock())
    for _ in range(5):
        tracing.step()
    assert tried == ["mine"], "a permanent fault is met once"
    fault = find_fault(entry, settings)
    assert fault is not None
    assert "cannot be traced" in fault.reason
    client = client_of(settings, load_profile=None)
    answer = client.post("/generate", data={"model": "mine", "prompt": "a bear"}, files=picture_file)
    assert (answer.status_code, answer.json()["code"]) == (422, "model_unavailable")
    os.utime(folder / "vae" / "config.json", (1, 1))
    assert find_fault(entry, settings) is None
    tracing.step()
    assert tried == ["mine", "mine"]


def test_an_entry_that_does_not_match_its_vae_says_which_number_is_wrong(folder: Path, quickly: None) -> None:
    del quickly
    settings = settings_for(folder, folder)
    entry = load_models(settings)["mine"].model_copy(update={"temporal_ratio": 4})
    Tracing(settings, {"mine": entry}, Clock()).step()
    fault = find_fault(entry, settings)
    assert fault is not None
    assert fault.reason == "its entry has temporal_ratio = 4, its VAE 8: correct the entry"


def test_what_may_pass_is_tried_less_and_less_often_and_named_at_the_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    picture_file: dict[str, Any],
    client_of: Callable[..., TestClient],
) -> None:
    tries: list[float] = []
    clock = Clock()

    def unreachable(*_: object) -> None:
        tries.append(clock.now)
        raise ModelUnavailable("the Hugging Face hub cannot be reached", transient=True)

    monkeypatch.setattr(profile_tracer, "_traced", unreachable)
    (tmp_path / "model").mkdir()
    settings = settings_for(tmp_path / "model", Path("somebody/some-model"))
    tracing = Tracing(settings, {"mine": load_models(settings)["mine"]}, clock)
    for _ in range(600):
        tracing.step()
        clock.now += 2
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert 5 <= len(tries) <= 10, "in twenty minutes"
    client = client_of(settings, load_profile=None)
    answer = client.post("/generate", data={"model": "mine", "prompt": "a bear"}, files=picture_file)
    assert (answer.status_code, answer.json()["code"]) == (503, "profile_pending")
    assert "hub cannot be reached" in answer.json()["detail"]
    assert client.get("/readyz").json()["unavailable"] == {}, "that may pass"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that exists and cannot be read")
def test_a_configuration_that_cannot_be_read_keeps_no_other_model_from_its_profile(
    folder: Path,
    whole_folder: Path,
    quickly: None,
    picture_file: dict[str, Any],
    client_of: Callable[..., TestClient],
) -> None:
    del quickly
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").symlink_to("/proc/self/mem")  # EIO, as of a disk that fails
    settings = settings_for(folder, folder)
    entry = load_models(settings)["mine"]
    other = entry.model_copy(update={"name": "other", "source": str(whole_folder)})
    Tracing(settings, {"mine": entry, "other": other}, Clock()).step()
    assert profiles.load(settings, other) is not None
    answer = client_of(settings, load_profile=None).post(
        "/generate", data={"model": "mine", "prompt": "a bear"}, files=picture_file
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "profile_pending")
    assert "Input/output error" in answer.json()["detail"]


def test_the_profiler_s_process_stays_and_looks_again_instead_of_ending(folder: Path) -> None:
    no_index(folder)
    settings = settings_for(folder, folder)
    environ = {
        **os.environ,
        "FRAMEFIT_MODELS_FILE": str(settings.models_file),
        "FRAMEFIT_MODEL": "mine",
        "FRAMEFIT_DATA_DIR": str(settings.data_dir),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "app", "profile"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            assert "has no model_index.json" in next(line for line in lines if "model_unavailable" in line)
            (folder / "model_index.json").write_text("[]")
            assert "model_index.json is damaged" in next(
                line for line in lines if "model_unavailable" in line
            )
            assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "it waits without torch"
        finally:
            process.kill()
