"""`framefit generate`: makes a video from an image and a prompt, and prints the decode decision."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app.cli.frame_options import images_of
from app.cli.options import STRATEGIES, AsJson, DataDir, Fit, Gravity, byte_count, settings_with
from app.cli.outputs import check_output_file, print_json, video_format
from app.cli.summaries import decode_summary, framing_sentences, stopped_summary, weights_summary
from app.units import format_bytes

_STAGES = {
    "queued": "waiting in the queue",
    "held": "held back behind the other jobs",
    "downloading": "downloading the model",
    "loading": "loading the model",
    "denoising": "denoising",
    "waiting_for_memory": "waiting for memory",
    "decoding": "decoding",
    "encoding": "writing the video",
}

FORMATS = "JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF"
INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(generate)


def generate(
    image: Annotated[
        Path, typer.Argument(help=f"The image to start from: {FORMATS}; - with --continue-from.")
    ],
    prompt: Annotated[str, typer.Argument(help="What should happen in the video.")],
    last_image: Annotated[
        Path | None,
        typer.Option(help="The image to end with, for models that support it.", exists=True, dir_okay=False),
    ] = None,
    keyframe: Annotated[
        list[str] | None,
        typer.Option(
            "--keyframe",
            help="A picture that the video passes through, as FILE@FRAME or FILE@FRAME:STRENGTH, for models "
            "that support it; -1 is the last frame. May be repeated.",
        ),
    ] = None,
    continue_from: Annotated[
        str | None, typer.Option(help="Id of a job whose last frame is the image to start from.")
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="End with the first image, for models that support it.")
    ] = False,
    fs: Annotated[
        int | None, typer.Option("--fs", help="Amount of motion, for models that support it.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", help="A LoRA as NAME or NAME:SCALE, from GET /loras; may be repeated."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write: .mp4, .webm, .gif, .webp or .png.zip.")
    ] = Path("out.mp4"),
    negative_prompt: Annotated[str | None, typer.Option(help="What the video should not show.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `framefit models`.")] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Width in pixels. Default: like the image.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="Height in pixels. Default: like the image.")
    ] = None,
    fit: Fit = "cover",
    gravity: Gravity = "center",
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Video frames.")] = None,
    fps: Annotated[
        str | None, typer.Option(help="Frames per second, such as 24, 23.976 or 24000/1001.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed, up to 2**64 - 1. Default, and -1: a random one.")
    ] = None,
    decode_strategy: Annotated[str | None, typer.Option(help=STRATEGIES)] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Allow approximate pixels if no exact option fits.")
    ] = False,
    frames_per_chunk: Annotated[int | None, typer.Option(min=1, help="Latent frames per chunk.")] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="Memory limit for decoding, such as 2GiB.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="URL of a running service. Default: one found on this machine.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a video from an image and a prompt.

    Starts a private service if none runs, and stops it afterwards. Prints the job's id; Ctrl-C cancels the
    job.
    """
    images, fields = images_of(image, last_image, keyframe or [], continue_from)
    fields |= {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "model": model,
        "width": width,
        "height": height,
        "fit": fit,
        "gravity": gravity,
        "num_frames": frames,
        "fps": fps,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "fs": fs,
        "loop": loop or None,
        "loras": _loras(lora or []),
        "decode_strategy": decode_strategy,
        "exact_only": "false" if approximate else None,
        "frames_per_chunk": frames_per_chunk,
        "memory_budget_bytes": None if memory_budget is None else byte_count(memory_budget),
    }
    form = video_format(out)
    check_output_file(out)
    job = _generate(images, fields, out, form, url, settings_with(data_dir=data_dir))
    if as_json:
        print_json({"out": str(out), "job": job})
    else:
        typer.echo(str(out))


def _loras(given: list[str]) -> str | None:
    """Return the field of the request as JSON text; None without LoRAs."""
    loras = []
    for text in given:
        name, colon, scale = text.rpartition(":")
        try:
            loras.append({"name": name, "scale": float(scale)} if colon else {"name": text})
        except ValueError:
            raise typer.BadParameter(f"{text!r}: write NAME or NAME:SCALE, such as my-style:0.8") from None
    return json.dumps(loras) if loras else None


def _generate(
    images: dict[str, Path], fields: dict[str, Any], out: Path, form: str, url: str | None, settings: Any
) -> dict[str, Any]:
    """Make the video and write it to `out`; return the job."""
    import httpx
    from rich.console import Console

    from app.client import Client, ClientError, service_url

    console = Console(stderr=True)
    say = console.print
    try:
        with (
            service_url(settings, url, lambda: say("Starting a private service …")) as found,
            closing(Client(found, settings.client_key)) as client,
        ):
            job = _submitted(client, images, fields, console)
            try:
                _tell_queued(job, console)
                job = _followed(client, job, console)
            except KeyboardInterrupt:
                _end_interrupted(console, _canceled(client, job["id"]))
            if job["status"] != "succeeded":
                message = (job.get("error") or {}).get("message", "no reason given")
                raise ClientError(f"job {job['id']} is {job['status']}: {message}")
            _download(client, job["id"], out, console, form)
    except httpx.HTTPError as error:
        raise ClientError(f"cannot reach the service: {error}") from error
    denoise = job.get("denoise") or {}
    say(decode_summary(job["decode"]) + weights_summary(denoise) + stopped_summary(denoise))
    return job


def _submitted(client: Any, images: dict[str, Path], fields: dict[str, Any], console: Any) -> dict[str, Any]:
    try:
        job: dict[str, Any] = client.submit(images, fields, console.print)
    except KeyboardInterrupt:
        sentence = "Interrupted before the service had answered. If it took the job, the job is in its queue."
        _end_interrupted(console, sentence)
    return job


def _tell_queued(job: dict[str, Any], console: Any) -> None:
    for sentence in (f"Job {job['id']} is queued. Ctrl-C cancels it.", *framing_sentences(job)):
        console.print(sentence, highlight=False, soft_wrap=True)


def _followed(client: Any, job: dict[str, Any], console: Any) -> dict[str, Any]:
    """Show the job's progress until it has ended; return it as it ended."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:24}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("queued", total=1.0)
        for seen in client.follow(job["id"]):
            if seen.get("gave_way") and seen["gave_way"] != job.get("gave_way"):
                console.print(f"The job {seen['gave_way']}.", highlight=False, soft_wrap=True)
            job = seen
            bar.update(task, completed=_share(job), description=_doing(job))
    return job


def _share(job: dict[str, Any]) -> float:
    """Return how far the bar is: the download is shown as a whole of its own."""
    if job["stage"] == "downloading" and job["download"]:
        return float(job["download"]["done_bytes"] / max(1, job["download"]["total_bytes"]))
    return float(job["progress"])


def _doing(job: dict[str, Any]) -> str:
    text = str(_STAGES.get(job["stage"], job["status"]))  # an ended job shows its status
    if job["stage"] == "downloading" and job["download"]:
        return f"{text}: {download_text(job['download'])}"
    return text


def download_text(download: dict[str, Any]) -> str:
    """Return how far a download is: bytes, rate and time left."""
    parts = [f"{format_bytes(download['done_bytes'])} of {format_bytes(download['total_bytes'])}"]
    if download["bytes_per_second"]:
        parts.append(f"{format_bytes(download['bytes_per_second'])}/s")
    if download["seconds_left"] is not None:
        parts.append(f"{_duration(download['seconds_left'])} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _canceled(client: Any, job_id: str) -> str:
    """Cancel the job; return a sentence about what becomes of it."""
    import httpx

    from app.client import ClientError

    try:
        client.cancel(job_id)
    except (httpx.HTTPError, ClientError, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split()) or "interrupted again"
        return f"Job {job_id} was not canceled ({reason}) and goes on. To end it: framefit delete {job_id}"
    return f"Job {job_id} is canceled: it stops at its next step and makes no video."


def _download(client: Any, job_id: str, out: Path, console: Any, form: str = "mp4") -> None:
    from app.client import ClientError

    kept = f"the video of job {job_id} stays in the service"
    try:
        if form != "mp4":
            console.print(f"Making {out.name} of the mp4 …", highlight=False, soft_wrap=True)
        client.download(job_id, out, form)
    except KeyboardInterrupt:
        _end_interrupted(console, f"Interrupted: {kept}.")
    except OSError as error:
        raise ClientError(f"{out} cannot be written: {error.strerror}; {kept}") from error


def _end_interrupted(console: Any, sentence: str) -> NoReturn:
    console.print(sentence, highlight=False, soft_wrap=True)
    sys.exit(INTERRUPTED)
