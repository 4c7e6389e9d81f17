"""Common mistakes end each command with a line that says what is wrong and what to do, and no traceback."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from roots_rights import without_roots_rights

from app.cli import app
from app.cli.faults import exit_status, one_line
from app.config import ConfigError

Framefit = Callable[..., Any]
NOBODY = "http://127.0.0.1:1"
ENTRY = """
[models.{name}]
source = "{source}"
pipeline = "LTXImageToVideoPipeline"
vae_class = "AutoencoderKLLTXVideo"
size_multiple = 32
temporal_ratio = 8
first_frame_alone = true
[models.{name}.defaults]
width = 256
height = 256
num_frames = 25
fps = 8
num_inference_steps = 4
guidance_scale = 1
[models.{name}.limits]
max_pixels = 1000000
max_frames = 100
max_steps = 10
"""
IMPOSSIBLE = [
    ("a_file", "is a file, or lies below one: set FRAMEFIT_DATA_DIR"),
    ("a_file/data", "is a file, or lies below one: set FRAMEFIT_DATA_DIR"),
    ("read_only", "may not be written to by user"),
    ("read_only/data", "may not be written to by user"),
    ("/proc/nothing/data", "cannot be written to: No such file or directory: set FRAMEFIT_DATA_DIR"),
]
# Arguments, exit status, and what is said: each mistake with its remedy.
MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    (("genrate",), 2, "No such command 'genrate'. Did you mean 'generate'?"),
    (("generate",), 2, "Missing argument 'image'"),
    (("generate", "nothing.jpg", "x"), 2, "file 'nothing.jpg' does not exist"),
    (("generate", "photo.jpg", "x", "--widht", "64"), 2, "No such option: --widht"),
    (("generate", "photo.jpg", "x", "--width", "-64"), 2, "Invalid value for '--width'"),
    (("generate", "photo.jpg", "x", "--frames", "many"), 2, "Invalid value for '--frames'"),
    (
        ("generate", "photo.jpg", "x", "--memory-budget", "plenty"),
        2,
        "'plenty' is not a memory size: write one such as 12GiB or 12GB",
    ),
    (
        ("generate", "photo.jpg", "x", "-o", "nowhere/out.mp4", "--url", NOBODY),
        2,
        "there is no folder nowhere: make it first (mkdir -p nowhere)",
    ),
    (
        ("generate", "photo.jpg", "x", "-o", "read_only", "--url", NOBODY),
        2,
        "read_only is a folder: name a file in it, such as read_only/out.mp4",
    ),
    (
        ("generate", "photo.jpg", "x", "-o", "read_only/out.mp4", "--url", NOBODY),
        2,
        "the folder read_only may not be written to: choose another",
    ),
    (
        ("generate", "photo.jpg", "x", "-o", "a_file/out.mp4", "--url", NOBODY),
        2,
        "a_file is no folder: choose another place for out.mp4",
    ),
    (("generate", "photo.jpg", "x", "--url", NOBODY), 1, "cannot reach the service"),
    (("generate", "photo.jpg", "x", "--url", "nonsense"), 1, "missing an 'http://' or 'https://' protocol"),
    (("delete", "some-job", "--yes", "--url", NOBODY), 1, "cannot reach the service"),
    (("decode", "a_file", "-o", "out.avi"), 2, "out.avi must end in .mp4 or .safetensors"),
    (("decode", "a_file", "-o", "nowhere/out.mp4"), 2, "there is no folder nowhere: make it first"),
    (("decode", "a_file", "--model", "tiny"), 1, "a_file is not a safetensors file"),
    (("encode", "photo.jpg", "-o", "latents.bin"), 1, "latents.bin must end in .safetensors"),
    (("encode", "photo.jpg", "-o", "a_file/x.safetensors"), 2, "a_file is no folder"),
    (
        ("encode", "photo.jpg", "-o", "x.safetensors", "--device", "cuda:99"),
        1,
        "device cuda:99 cannot be used",
    ),
    (("calibrate", "--out", "a_file/tables"), 2, "a_file is no folder, so that a_file/tables cannot be made"),
    (
        ("calibrate", "--model", "nonesuch"),
        2,
        "there is no model 'nonesuch'; available models: photo-pan,",
    ),
    (("plan", "--model", "nonesuch"), 2, "there is no model 'nonesuch'; available models: photo-pan,"),
    (("plan", "--gpu", "lots"), 2, "'lots' is not a memory size: write one such as 12GiB or 12GB"),
    (("plan", "--width", "0"), 2, "Invalid value for '--width'"),
    (
        ("plan", "--model", "ltx-video", "--gpu", "1GiB"),
        1,
        "the card is smaller than the reserve: it has 1.0 GiB, and 1.1 GiB are reserved (600.0 MiB for "
        "CUDA's context and 512.0 MiB of FRAMEFIT_RESERVE_BYTES)",
    ),
    (
        ("plan", "--model", "ltx-video", "--gpu", "1.2GiB"),
        1,
        "placing the weights needs 2.2 GiB, the budget is 116.8 MiB",
    ),
    (("bench", "compare", "a_file"), 2, "a_file: Expecting value"),
    (("backup", "backup"), 1, "set FRAMEFIT_DATA_DIR or --data-dir"),
    (("restore", "nothing"), 1, "nothing is no complete backup: it has no backup.json"),
    (("key", "webhook-secret", "me"), 2, "FRAMEFIT_WEBHOOK_SECRET is not set: webhooks are off"),
    (("serve", "--port", "99999"), 2, "FRAMEFIT_PORT: Input should be less than or equal to 65535"),
    (("serve", "--host", "0.0.0.0"), 2, "set FRAMEFIT_API_KEYS or FRAMEFIT_KEYS_FILE"),
    *((("serve", "--port", "0", "--data-dir", place), 1, told) for place, told in IMPOSSIBLE),
    *((("api", "--data-dir", place), 1, told) for place, told in IMPOSSIBLE[1:2]),
    *((("plan", "--data-dir", place), 1, told) for place, told in IMPOSSIBLE),
    *((("generate", "photo.jpg", "x", "--data-dir", place), 1, told) for place, told in IMPOSSIBLE[1:3]),
    *((("calibrate", "--data-dir", place), 1, told) for place, told in IMPOSSIBLE[1:3]),
    (("encode", "photo.jpg", "-o", "x.safetensors", "--data-dir", "a_file"), 1, IMPOSSIBLE[0][1]),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with two files and a folder that is not writable; modes count for root, too."""
    (tmp_path / "a_file").write_text("a text\n")
    (tmp_path / "photo.jpg").write_bytes(b"no photo")
    (tmp_path / "read_only").mkdir(mode=0o500)
    with without_roots_rights():
        yield tmp_path


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "status", "told"), MISTAKES, ids=[" ".join(one[0]) for one in MISTAKES]
)
def test_a_mistake_is_told_in_a_line_with_what_to_do(
    arguments: tuple[str, ...], status: int, told: str, framefit: Framefit
) -> None:
    # A port that belongs to nobody, so that no service of somebody else is found.
    ended = framefit(*arguments, **({} if "--port" in arguments else {"FRAMEFIT_PORT": "1"}))
    assert told in unboxed(ended.output)
    assert ended.exit_code == status
    assert isinstance(ended.exception, SystemExit), "a traceback"


def unboxed(text: str) -> str:
    """The text in one line, without the frame that the command line draws around errors."""
    return " ".join(re.sub(r"[╭╮╰╯│─]", " ", text).split())


def test_a_models_file_tells_all_its_faults_at_once(place: Path, framefit: Framefit) -> None:
    first = ENTRY.format(name="first", source="x/y").replace("width = 256", "width = 250")
    (place / "models.toml").write_text(
        first.replace("num_frames = 25", "num_frames = 24")
        + "[models.second]\nsuorce = 'x/y'\n[models.tiny]\ndtype = 'int8'\nquantize = 'int4'\n"
    )
    ended = framefit("models", FRAMEFIT_MODELS_FILE="models.toml")
    assert ended.exit_code == 2
    (line,) = ended.stderr.splitlines()
    for told in (
        "models.first.defaults: width and height must be multiples of 32, got 250x256",
        "models.first.defaults.num_frames: must be 8k+1, got 24",
        "models.second.suorce",
        "models.second.pipeline",
        "models.tiny.dtype",
        "models.tiny.quantize",
    ):
        assert told in line
    missing = framefit("models", FRAMEFIT_MODELS_FILE="nothing.toml")
    assert missing.exit_code == 2
    assert missing.stderr == "framefit: nothing.toml: [Errno 2] No such file or directory: 'nothing.toml'\n"


def test_a_source_folder_that_is_missing_is_named(place: Path, framefit: Framefit) -> None:
    (place / "models.toml").write_text(ENTRY.format(name="mine", source="/nowhere/model"))
    own = {"FRAMEFIT_MODELS_FILE": "models.toml", "FRAMEFIT_MODEL": "mine"}
    told = "the source of model mine, /nowhere/model, does not exist on this machine: correct it in the"
    planned = framefit("plan", **own)
    assert planned.exit_code == 1
    assert told in planned.stderr
    assert len(planned.stderr.splitlines()) == 1
    hub = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOBODY, "FRAMEFIT_PORT": "0"}
    examined = framefit("doctor", **own, **hub)
    assert examined.exit_code == 1
    assert told in examined.stdout
    assert isinstance(examined.exception, SystemExit)


def test_our_own_faults_keep_their_traceback_and_those_of_users_have_one_line() -> None:
    assert exit_status(ZeroDivisionError()) is None
    assert exit_status(typer.Exit(3)) is None
    assert exit_status(ConfigError("wrong")) == 2
    missing = FileNotFoundError(2, "No such file or directory", "there")
    assert (exit_status(missing), one_line(missing)) == (1, "there: No such file or directory")
    assert one_line(ValueError("two\nlines")) == "two lines"


def commands(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield names, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*names, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(("names", "command"), COMMANDS, ids=[" ".join(one[0]) for one in COMMANDS])
def test_the_help_of_each_command_names_its_options_and_what_they_mean(
    names: tuple[str, ...], command: Any, framefit: Framefit
) -> None:
    shown = framefit(*names, "--help")
    assert shown.exit_code == 0
    text = unboxed(shown.stdout)
    for each in command.params:
        if getattr(each, "hidden", False):
            continue
        assert each.help, f"{each.name} of {names} has no help"
        assert unboxed(each.help)[:40] in text
    for name, each in getattr(command, "commands", {}).items():
        assert each.hidden or name in text
