"""`framefit encode`: encodes a clip, or a folder of clips, for fine-tuning and `framefit decode`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import (
    AsJson,
    DataDir,
    Fit,
    Gravity,
    MemoryBudget,
    byte_count,
    chosen_model,
    clip_rate,
    settings_with,
)
from app.cli.outputs import check_output_folder, print_json
from app.units import format_bytes

LATENTS_SUFFIX = ".safetensors"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(encode)


def encode(
    clip: Annotated[Path, typer.Argument(help="A video, or a folder of videos.", exists=True)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .safetensors file, or a folder if CLIP is a folder.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Model whose VAE encodes. Default: the default model.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Scale and crop to this width. Default: the clip's.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="Scale and crop to this height. Default: the clip's.")
    ] = None,
    fit: Fit = "cover",
    gravity: Gravity = "center",
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Encode exactly this many frames from the start. Default: as many as the VAE accepts.",
        ),
    ] = None,
    fps: Annotated[
        str | None,
        typer.Option(help="Drop or repeat frames to reach this rate, such as 24, 23.976 or 30000/1001."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda:N or cpu.")] = "cpu",
    strategy: Annotated[str, typer.Option(help="auto, batched, chunked or per_frame.")] = "auto",
    frames_per_chunk: Annotated[int | None, typer.Option(min=1, help="Video frames per chunk.")] = None,
    memory_budget: MemoryBudget = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the VAE's latents without the model's normalisation.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Encode clips again whose latents exist.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Encode clips of any length to normalised latents, as the model denoises them. Loads only the VAE."""
    from adaptive.errors import AdaptiveError
    from app.latents.clip_encoder import EncodeOptions
    from app.media.clips import ClipError
    from app.models.components import ModelUnavailable

    settings = settings_with(data_dir=data_dir)
    budget = None if memory_budget is None else byte_count(memory_budget)
    encoded: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    check_output_folder(out.parent)
    try:
        rate = None if fps is None else clip_rate(fps)
        options = EncodeOptions(width, height, frames, rate, strategy, frames_per_chunk, raw, fit, gravity)
        work, skipped = _work(clip, out, overwrite)
        if skipped:
            typer.echo(f"{skipped} clips are encoded already; --overwrite encodes them again", err=True)
        encoder = _encoder(settings, model, device, budget) if work else None
        for source, target in work:
            try:
                encoded.append(_one(encoder, source, target, options, as_json=as_json))
            except (ClipError, OSError) as error:
                said = f"{error} ({error.code})" if isinstance(error, ClipError) else str(error)
                failed.append({"clip": str(source), "error": said})
                typer.secho(f"framefit: {said}", err=True, fg=typer.colors.RED)
    except (AdaptiveError, ModelUnavailable, ClipError, ValueError) as error:
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    if as_json:
        print_json({"encoded": encoded, "failed": failed, "skipped": skipped})
    if failed:
        sys.exit(1)


def _work(clip: Path, out: Path, overwrite: bool) -> tuple[list[tuple[Path, Path]], int]:
    """Return pairs of clip and latents file, and the number of clips skipped because theirs exists.

    Raises `ValueError` for a wrong kind of output, an empty folder, or two clips with the same latents file.
    """
    from app.media.clips import SUFFIXES

    if not clip.is_dir():
        if out.suffix != LATENTS_SUFFIX:
            raise ValueError(f"{out.name} must end in {LATENTS_SUFFIX}")
        return [(clip, out)], 0
    if out.suffix == LATENTS_SUFFIX:
        raise ValueError(f"{clip} is a folder: --out must also be a folder, not {out.name}")
    targets: dict[Path, Path] = {}
    for source in sorted(path for path in clip.rglob("*") if path.suffix.lower() in SUFFIXES):
        target = out / source.relative_to(clip).with_suffix(LATENTS_SUFFIX)
        if target in targets:
            raise ValueError(
                f"{targets[target].name} and {source.name} would both be written to {target.name}: rename one"
            )
        targets[target] = source
    if not targets:
        raise ValueError(f"{clip} has no videos ({', '.join(sorted(SUFFIXES))})")
    left = [(source, target) for target, source in targets.items() if overwrite or not target.exists()]
    return left, len(targets) - len(left)


def _encoder(settings: Any, model: str | None, device: str, budget: int | None) -> Any:
    from adaptive.device.probe import open_probe
    from adaptive.planning.planner import Policy
    from app.cli.download_bar import download_bar
    from app.latents.clip_encoder import ClipEncoder
    from app.models.entries import load_models
    from app.models.loading import load_vae
    from app.service.data_folder import prepare_data_folder

    entry = chosen_model(load_models(settings), model)
    open_probe(device)  # refuses a device that is not there, before the VAE is loaded
    if entry.is_builtin:  # it is made there
        prepare_data_folder(settings.data_dir)
    policy = Policy(budget_bytes=budget, reserve_bytes=settings.reserve_bytes)
    with download_bar("downloading the VAE: ") as seen:
        vae = load_vae(entry, settings, seen).to(device)
    return ClipEncoder(vae, entry, policy)


def _one(encoder: Any, source: Path, target: Path, options: Any, *, as_json: bool) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from app.media.clips import open_clip

    target.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(source.name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        result = encoder.encode(open_clip(source), target, options, show)
    typer.echo(_summary(source.name, result), err=True)
    if not as_json:
        typer.echo(str(target))
    info, plan = result.info, result.plan
    return {
        "clip": str(source),
        "out": str(target),
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "normalised": info.normalised,
        "dropped_frames": result.dropped,
        "frames_per_chunk": plan.frames_per_chunk,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
    }


def _summary(name: str, result: Any) -> str:
    """Return a sentence about the encoded clip and the strategy used."""
    info, plan = result.info, result.plan
    how = {
        "per_channel": "normalised per channel",
        "scaling_factor": f"multiplied by {info.scale.factor:g}",
        "none": "as the VAE outputs them, which is what the model takes",
        "raw": "raw: not normalised",
    }[info.normalised]
    one_call = plan.frames_per_chunk >= plan.video_frames
    chunks = "in one call" if one_call else f"about {plan.frames_per_chunk} frames at a time"
    text = f"{name}: {info.frames} frames of {info.width}x{info.height}, {chunks} "
    text += f"(at most {format_bytes(plan.predicted_peak_bytes)}); latents {how}."
    if any((*result.framing.cut().values(), *result.framing.bars().values())):
        text += f" {result.framing.detail()}."
    if result.dropped:
        text += f" The last {result.dropped} of {info.frames + result.dropped} frames are left out: "
        text += "the VAE cannot encode this number of frames."
    return text
