"""Checks of the machine: driver and GPUs, torch's build, the video encoder, the models' files."""

import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adaptive.device.nvml import GpuInfo, Nvml, NvmlState
from app.config import ConfigError, Settings
from app.doctor.findings import CheckResult, Finding, note, ok, wrong
from app.models.entries import ModelEntry, load_models
from app.service.gpus.devices import CPU, DeviceChoice, Devices, choose_devices
from app.service.gpus.roles import roles_of
from app.service.gpus.unused import UnusedGpu, UnusedReason
from app.units import format_bytes

HUB_SECONDS = 4.0
_MODEL_ADVICE = (
    "Correct the model's files or its entry in the models file; a running service notices new files."
)
RESET = "The GPU does not answer. Run nvidia-smi for details; reset it (nvidia-smi -r) or reboot."
UNCLEAR = "The finding on devices or torch below says whether CUDA can use it."


def devices(settings: Settings) -> Iterator[Finding]:
    """Check the driver, each GPU, and the devices named in the settings.

    CUDA itself is asked where the driver does not say enough to choose devices.
    """
    with Nvml() as nvml:
        state, gpus, driver = nvml.state, nvml.devices(), nvml.driver_version
    found, fault = Devices((), ()), None
    try:
        found = choose_devices(settings.devices)
    except ConfigError as error:
        fault = wrong(
            "devices", str(error), 'Set FRAMEFIT_DEVICES to "auto", or to GPUs that are listed above.'
        )
    if not gpus:
        yield _no_card(state, on_cpu=found.chosen == (CPU,))
    yield from (_card(gpu, driver, found) for gpu in gpus)
    listed = {gpu.uuid for gpu in gpus}
    yield from (
        _unlisted(choice) for choice in found.chosen if choice != CPU and choice.identity not in listed
    )
    yield from _left_out(found.unused, on_cpu=CPU in found.chosen)
    if fault is not None:
        yield fault
    elif settings.roles:
        yield _roles(found, settings.roles)


def _no_card(state: NvmlState, *, on_cpu: bool) -> Finding:
    if state in (NvmlState.NO_DRIVER, NvmlState.NO_GPU):
        return ok("gpu", f"no GPU ({state}): jobs run on the CPU" if on_cpu else f"the driver says {state}")
    text = f"the driver's management library reports {state} and lists no GPU"
    if not on_cpu:
        return note("gpu", text, "Run nvidia-smi: it names the fault. CUDA works without that library.")
    return wrong("gpu", text, "Run nvidia-smi. After an update of the driver, reload its module or reboot.")


def _card(gpu: GpuInfo, driver: str | None, found: Devices) -> Finding:
    known = " ".join(part for part in (gpu.name, gpu.uuid) if part) or f"card {gpu.index}"
    if gpu.state is NvmlState.OK:
        memory = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
        return ok("gpu", f"{known}: {memory}, driver {driver or 'of unknown version'}")
    if any(gpu.uuid and choice.identity == gpu.uuid for choice in found.chosen):
        return ok("gpu", f"{known}: the driver says {gpu.state}, but CUDA opens it and reports its memory")
    if gpu.state is NvmlState.GPU_LOST:
        return wrong("gpu", f"{known}: {gpu.state}", RESET)
    return note("gpu", f"{known}: the driver says {gpu.state}", UNCLEAR)


def _unlisted(choice: DeviceChoice) -> Finding:
    known = " ".join(part for part in (choice.name, choice.identity) if part)
    return ok("gpu", f"{known}: CUDA opens it, although the driver's management library does not tell of it")


def _left_out(unused: Iterable[UnusedGpu], *, on_cpu: bool) -> Iterator[Finding]:
    for gpu in unused:
        detail = f"{gpu}; jobs run on the CPU" if on_cpu else str(gpu)
        if gpu.reason is UnusedReason.GPU_LOST:
            continue  # said of the card itself
        if not gpu.reason.wanted:
            yield wrong("devices", detail, gpu.reason.advice)
        elif on_cpu:
            yield note("devices", detail, gpu.reason.advice)


def _roles(found: Devices, entries: Sequence[str]) -> Finding:
    try:
        roles = roles_of(found, entries)
    except ConfigError as error:
        return wrong("roles", str(error), "Set FRAMEFIT_ROLES for devices of FRAMEFIT_DEVICES only.")
    told = ", ".join(f"{identity}: {role}" for identity, role in roles.items())
    if not any(role.denoises for role in roles.values()):
        advice = "Give one device the role denoise or both, here or on a host with the same database."
        return note("roles", f"{told}; no worker of this service denoises", advice)
    return ok("roles", told)


def torch_build() -> Finding:
    """Check torch's CUDA version against the driver, and its kernels against the GPUs."""
    import torch

    built = torch.version.cuda
    detail = f"torch {version('torch')}, CUDA {built or 'not built in'}, diffusers {version('diffusers')}"
    with Nvml() as nvml:
        gpus, driver_cuda = nvml.devices(), nvml.cuda_version
    try:
        available = torch.cuda.is_available()
        trouble = _unsuited(built, driver_cuda) if gpus else None
        if trouble is None and gpus and not available:
            trouble = (
                "CUDA cannot be used",
                "Run nvidia-smi; check CUDA_VISIBLE_DEVICES and the container's runtime.",
            )
        if trouble is None and available:
            trouble = _without_kernels(torch)
    except Exception as error:  # torch passes on whatever a driver does
        trouble = (f"CUDA fails: {error}", "Run nvidia-smi; check that the driver fits torch's CUDA version.")
    return ok("torch", detail) if trouble is None else wrong("torch", f"{detail}: {trouble[0]}", trouble[1])


def _unsuited(built: str | None, driver_cuda: tuple[int, int] | None) -> tuple[str, str] | None:
    """Return fault and advice if a build of torch cannot run on the driver, else None.

    Within one major version of CUDA every build runs on every driver
    (https://docs.nvidia.com/deploy/cuda-compatibility: minor version compatibility).
    """
    if built is None:
        return (
            "the GPUs cannot be used",
            "Install a CUDA build of torch; until then jobs run on the CPU.",
        )
    if driver_cuda is None or int(built.split(".")[0]) <= driver_cuda[0]:
        return None
    can = ".".join(map(str, driver_cuda))
    return (
        f"the driver supports CUDA {can} at most",
        f"Update the driver, or install a build of torch for CUDA {driver_cuda[0]}.",
    )


def _without_kernels(torch: Any) -> tuple[str, str] | None:
    """Return fault and advice if a GPU is older than the kernels of torch's build, else None."""
    numbers = [name.removeprefix("sm_").removeprefix("compute_") for name in torch.cuda.get_arch_list()]
    built = sorted(int("".join(filter(str.isdigit, one))) for one in numbers)
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if built and major * 10 + minor < built[0]:
            name = torch.cuda.get_device_name(index)
            return (
                f"{name} is too old for this build's kernels",
                "Install an older build of torch, or leave the GPU out of FRAMEFIT_DEVICES.",
            )
    return None


def encoder() -> Finding:
    """Check the video encoder by writing a short video."""
    import av
    import numpy

    from adaptive.types import VideoShape
    from app.media.video import VideoWriter

    advice = "Reinstall PyAV from its wheel (pip install --force-reinstall av): it includes x264."
    if "libx264" not in av.codecs_available:
        return wrong("encoder", f"PyAV {version('av')} has no libx264", advice)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "doctor.mp4"
            with VideoWriter(path, VideoShape(2, 64, 64), 8) as writer:
                writer.write(numpy.zeros((2, 64, 64, 3), numpy.uint8))
                writer.finish()
            size = path.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:
        return wrong("encoder", f"PyAV {version('av')}: {error}", advice)
    return ok("encoder", f"libx264 of PyAV {version('av')} wrote a video ({size} bytes)")


def models(settings: Settings) -> Iterator[Finding]:
    """Check each model's files and, if some must be downloaded, whether the hub can be reached."""
    from app.models.checks.faults import find_fault
    from app.models.loading import where_weights_are

    entries = load_models(settings)
    missing = []
    for entry in entries.values():
        fault = find_fault(entry, settings)
        if fault is not None:
            make = note if fault.transient else wrong
            yield make("model", f"{entry.name} ({entry.source}): {fault.reason}", _MODEL_ADVICE)
            continue
        found = where_weights_are(entry, settings)
        if found is not None:
            yield ok("model", f"{entry.name}: {found}")
        else:
            missing.append(entry)
    default = next(iter(entries))
    yield from _not_rounded([entry.name for entry in entries.values() if entry.quantize])
    yield from _not_converted([entry for entry in missing if entry.resolution is not None], default)
    yield from _not_downloaded([entry for entry in missing if entry.resolution is None], default)


def _not_rounded(names: list[str]) -> Iterator[Finding]:
    if names and importlib.util.find_spec("torchao") is None:
        advice = "Run pip install 'framefit[quantize]', or remove quantize from the entries."
        yield wrong("model", f"{', '.join(names)}: quantize needs torchao, which is not installed", advice)


def _not_converted(entries: list[ModelEntry], default: str) -> Iterator[Finding]:
    """Yield one finding for all unconverted models together."""
    if entries:
        names = [entry.name for entry in entries]
        make = wrong if default in names else note
        advice = "Run framefit convert to make a folder from each published checkpoint."
        yield make("model", f"{', '.join(names)}: not converted yet", advice)


def _not_downloaded(entries: list[ModelEntry], default: str) -> Iterator[Finding]:
    hub = _hub() if entries else None
    for entry in entries:
        detail = f"{entry.name}: {entry.source} is not downloaded yet"
        if hub is None or hub.standing is CheckResult.OK:
            yield note("model", detail, "The first job that uses the model downloads it.")
        else:
            make = wrong if entry.name == default else note
            yield make("model", f"{detail}; {hub.detail}", hub.advice)


def _hub() -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return note(
            "hub", "HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE, or name a local folder in the models file."
        )
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # the hub answers
    except (OSError, ValueError) as error:
        advice = "Check the network and its proxy, or name a local folder in FRAMEFIT_MODELS_FILE."
        return note("hub", f"{endpoint} cannot be reached ({error})", advice)
    return ok("hub", f"{endpoint} answers")
