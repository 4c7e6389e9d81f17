"""`framefit encode`: a clip, or a folder of clips, to latents, for fine-tuning and for `framefit decode`."""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import DataDir, MemoryBudget, byte_count, chosen_model, settings_with
from app.units import format_bytes

LATENTS_SUFFIX = ".safetensors"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(encode)


def encode(
    clip: Annotated[Path, typer.Argument(help="A video, or a folder of videos.", exists=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .safetensors file; a folder for a folder.")],
    model: Annotated[str | None, typer.Option(help="Whose VAE encodes; the default model's.")] = None,
    width: Annotated[int | None, typer.Option(help="The clip's own; scaled and cropped otherwise.")] = None,
    height: Annotated[int | None, typer.Option(help="As width.")] = None,
    frames: Annotated[
        int | None, typer.Option(help="Exactly so many from the start; the most that fit otherwise.")
    ] = None,
    fps: Annotated[str | None, typer.Option(help="Frames are dropped or repeated to this rate.")] = None,
    device: Annotated[str, typer.Option(help="cuda:N or cpu.")] = "cpu",
    strategy: Annotated[str, typer.Option(help="auto, batched, chunked or per_frame.")] = "auto",
    frames_per_chunk: Annotated[int | None, typer.Option(help="Video frames a chunk.")] = None,
    memory_budget: MemoryBudget = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The VAE's own latents, not normalised as the model needs them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Encode clips again that are there.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Encode clips of any length to latents, as the model denoises them. Only the VAE is loaded."""
    from adaptive.errors import AdaptiveError
    from app.latents.clip_encoder import EncodeOptions
    from app.media.clips import ClipError
    from app.models.components import ModelUnavailable

    settings = settings_with(data_dir=data_dir)
    budget = None if memory_budget is None else byte_count(memory_budget)
    failed = 0
    try:
        rate = None if fps is None else _rate(fps)
        wishes = EncodeOptions(width, height, frames, rate, strategy, frames_per_chunk, raw)
        work, skipped = _work(clip, out, overwrite)
        if skipped:
            typer.echo(f"{skipped} clips are encoded already: --overwrite encodes them again", err=True)
        encoder = _encoder(settings, model, device, budget) if work else None
        for source, target in work:
            try:
                _one(encoder, source, target, wishes)
            except (ClipError, OSError) as error:
                failed += 1
                typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
    except (AdaptiveError, ModelUnavailable, ClipError, ValueError) as error:
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    if failed:
        sys.exit(1)


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise ValueError(f"fps must be a number such as 24 or 30000/1001, got {text!r}")
    return rate


def _work(clip: Path, out: Path, overwrite: bool) -> tuple[list[tuple[Path, Path]], int]:
    """Clips and where their latents go, and how many are there already. `ValueError` where two would meet."""
    from app.media.clips import SUFFIXES

    if not clip.is_dir():
        if out.suffix != LATENTS_SUFFIX:
            raise ValueError(f"{out.name} must end in {LATENTS_SUFFIX}")
        return [(clip, out)], 0
    if out.suffix == LATENTS_SUFFIX:
        raise ValueError(f"{clip} is a folder: name a folder for the latents, not {out.name}")
    targets: dict[Path, Path] = {}
    for source in sorted(path for path in clip.rglob("*") if path.suffix.lower() in SUFFIXES):
        target = out / source.relative_to(clip).with_suffix(LATENTS_SUFFIX)
        if target in targets:
            raise ValueError(f"{targets[target].name} and {source.name} would both become {target.name}")
        targets[target] = source
    if not targets:
        raise ValueError(f"{clip} has no videos ({', '.join(sorted(SUFFIXES))})")
    left = [(source, target) for target, source in targets.items() if overwrite or not target.exists()]
    return left, len(targets) - len(left)


def _encoder(settings: Any, model: str | None, device: str, budget: int | None) -> Any:
    from adaptive.planning.planner import Policy
    from app.latents.clip_encoder import ClipEncoder
    from app.models.entries import load_models
    from app.models.loading import load_vae

    entry = chosen_model(load_models(settings), model)
    policy = Policy(budget_bytes=budget, reserve_bytes=settings.reserve_bytes)
    return ClipEncoder(load_vae(entry, settings).to(device), entry, policy)


def _one(encoder: Any, source: Path, target: Path, wishes: Any) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from app.media.clips import open_clip

    target.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(source.name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        result = encoder.encode(open_clip(source), target, wishes, show)
    typer.echo(_in_words(source.name, result), err=True)
    typer.echo(str(target))


def _in_words(name: str, result: Any) -> str:
    """What was encoded, and how."""
    info, plan = result.info, result.plan
    how = {
        "per_channel": "normalised by channel",
        "scaling_factor": f"times {info.scale.factor:g}",
        "none": "as the VAE gives them, which is what the model takes",
        "raw": "raw: not normalised",
    }[info.normalised]
    one_call = plan.frames_per_chunk >= plan.video_frames
    chunks = "in one call" if one_call else f"about {plan.frames_per_chunk} frames at a time"
    text = f"{name}: {info.frames} frames of {info.width}x{info.height}, {chunks} "
    text += f"(at most {format_bytes(plan.predicted_peak_bytes)}); latents {how}."
    if result.dropped:
        text += f" The last {result.dropped} frames are left out: the VAE cannot encode all "
        text += f"{info.frames + result.dropped}."
    return text
