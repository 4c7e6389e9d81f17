"""`framefit decode`: decodes a latents file to a video or to raw frames, in the memory that is free."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import (
    STRATEGIES,
    AsJson,
    DataDir,
    MemoryBudget,
    byte_count,
    chosen_model,
    clip_rate,
    settings_with,
)
from app.cli.outputs import check_output_file, print_json

FRAMES_SUFFIX = ".safetensors"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(decode)


def decode(
    latents: Annotated[
        Path,
        typer.Argument(
            help="latents.safetensors of a job, a file of `framefit encode`, a ComfyUI .latent, a cache of "
            "musubi-tuner, or latents of diffusers in a safetensors or torch.save file.",
            exists=True,
            dir_okay=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help=".mp4, or .safetensors for raw frames.")] = Path(
        "out.mp4"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            help="Model whose VAE decodes. Default: the one named in the file, else the default model."
        ),
    ] = None,
    fps: Annotated[
        str | None,
        typer.Option(help="Frames per second, such as 24 or 23.976. Default: the clip's, else the model's."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda:N or cpu.")] = "cpu",
    strategy: Annotated[str, typer.Option(help=STRATEGIES)] = "auto",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Allow approximate pixels if no exact option fits.")
    ] = False,
    frames_per_chunk: Annotated[int | None, typer.Option(min=1, help="Latent frames per chunk.")] = None,
    memory_budget: MemoryBudget = None,
    scale: Annotated[
        str,
        typer.Option(
            help="For files of other programs: normalised (as the model denoises latents), raw (as its VAE "
            "makes them), or auto (as such files usually are)."
        ),
    ] = "auto",
    width: Annotated[
        int | None, typer.Option(min=1, help="The video's width in pixels, of packed latents.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="The video's height, of packed latents.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="The video's frames, of packed latents.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Decode the latents of a job, an encoded clip, or another program.

    Every exact strategy and chunk size gives the same pixels. Files of other programs need --model; the
    command says how their latents were scaled.
    """
    from adaptive.errors import AdaptiveError
    from adaptive.planning.planner import Policy
    from app.latents.foreign.layout import Given, ModelTraits
    from app.latents.source import open_source
    from app.media.video import VideoWriteError
    from app.models.components import ModelUnavailable
    from app.models.entries import load_models

    if out.suffix not in (".mp4", FRAMES_SUFFIX):
        raise typer.BadParameter(f"{out.name} must end in .mp4 or {FRAMES_SUFFIX}")
    check_output_file(out)
    settings = settings_with(data_dir=data_dir)
    budget = None if memory_budget is None else byte_count(memory_budget)
    try:
        policy = Policy(
            strategy=strategy,
            exact_only=not approximate,
            frames_per_chunk=frames_per_chunk,
            budget_bytes=budget,
            reserve_bytes=settings.reserve_bytes,
        )
        models = load_models(settings)
        given, known = Given(width, height, frames, scale), ModelTraits(models, settings)
        source = open_source(latents, model, partial(chosen_model, models), given, known)
        rate = clip_rate(fps) if fps else source.fps or source.entry.defaults.fps
        report = _decode(settings, source, latents.name, out, rate, device, policy)
    except (AdaptiveError, ModelUnavailable, VideoWriteError, ValueError) as error:
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    if as_json:
        print_json({"out": str(out), "decode": report})
        return
    from app.cli.summaries import decode_summary

    typer.echo(decode_summary(report), err=True)
    typer.echo(str(out))


def _decode(
    settings: Any, source: Any, name: str, out: Path, fps: Any, device: str, policy: Any
) -> dict[str, Any]:
    import torch

    from adaptive.device.probe import open_probe
    from adaptive.errors import NonFiniteValues
    from app.cli.download_bar import download_bar
    from app.models import profiles
    from app.models.loading import load_vae
    from app.service.data_folder import prepare_data_folder
    from app.worker.decoding import ClipDecoding, DecodeContext, load_learned_costs
    from app.worker.finite import HALF, check_clip

    entry = source.entry
    if entry.is_builtin:  # it is made there
        prepare_data_folder(settings.data_dir)
    context = DecodeContext(
        open_probe(device), profiles.load(settings, entry), load_learned_costs(settings, torch.device(device))
    )
    with download_bar("downloading the VAE: ") as seen:
        vae = load_vae(entry, settings, seen).to(device)
    clip, said = source.load(vae)
    if said is not None:
        typer.echo(said, err=True)
    check_clip(clip, "latents")
    found = clip.calls[0].latents.shape[1]
    wanted = vae.config.get("latent_channels", found)
    if found != wanted:
        raise ValueError(
            f"{name} has {found} latent channels, but the VAE of {entry.name} takes {wanted}: "
            "name the model of the latents with --model"
        )
    decoding = ClipDecoding(vae, clip, policy, context)
    try:
        _write(decoding, out, fps, device)
    except NonFiniteValues as error:
        if error.stage != "decoding" or error.dtype not in HALF:
            raise
        typer.secho(f"{error} in {error.dtype}; decoding again in float32", err=True, fg=typer.colors.YELLOW)
        retry = {"from_dtype": error.dtype, "to_dtype": "float32", "values": error.values, "of": error.of}
    else:
        return decoding.report()
    in_float32 = entry.model_copy(update={"vae_dtype": "float32"})
    vae = load_vae(in_float32, settings).to(device, torch.float32)
    calls = tuple(call.to(torch.device(device), torch.float32) for call in clip.calls)
    again = ClipDecoding(vae, replace(clip, calls=calls), policy, replace(context, profile=None, retry=retry))
    _write(again, out, fps, device)
    return again.report()


def _write(decoding: Any, out: Path, fps: Any, device: str) -> None:
    """Write frames as they are decoded, so that memory does not grow with the length of the video."""
    import torch

    shape = decoding.video_shape
    if out.suffix == FRAMES_SUFFIX:
        from app.latents.tensor_file import TensorFile, TensorSpec

        frames = TensorSpec((1, 3, shape.frames, shape.height, shape.width), decoding.dtype)
        with TensorFile(out, {"frames": frames}, {}) as file:
            for chunk in decoding.frames():
                file.write("frames", chunk)
            file.finish()
        return
    from app.media.video import VideoWriter
    from app.worker.frame_transfer import FrameTransfer, samples_of

    with VideoWriter(out, shape, fps, samples_of(decoding.sound)) as writer:
        transfer = FrameTransfer(writer, torch.device(device))
        for chunk in decoding.frames():
            transfer.send(chunk)
        writer.finish()
