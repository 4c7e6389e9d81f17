"""The `framefit` command as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import psutil
import pytest
from PIL import Image

TORCH_FREE = (
    "app.cli",
    "app.service.processes",
    "app.service.supervisor",
    "app.client",
    "app.models.profiles",
    "app.models.components",
)


def framefit(*arguments: str, data_dir: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {"FRAMEFIT_DATA_DIR": str(data_dir), "FRAMEFIT_DEVICES": "cpu", "COLUMNS": "200"}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command,
        env={**os.environ, **own, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def test_processes_that_need_no_gpu_import_no_torch() -> None:
    code = """if True:
        import importlib, sys
        for name in sys.argv[1:]:
            importlib.import_module(name)
            heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
            assert not heavy, f"{name} imports {heavy}"
    """
    command = [sys.executable, "-c", code, *TORCH_FREE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_generate_starts_a_private_service_and_leaves_only_the_video(
    built_model: Path, tmp_path: Path
) -> None:
    data_dir, out = tmp_path / "data", tmp_path / "out.mp4"
    (data_dir / "models").mkdir(parents=True)
    (data_dir / "models" / "tiny").symlink_to(built_model)
    Image.linear_gradient("L").resize((64, 96)).convert("RGB").save(tmp_path / "photo.jpg")
    fields = [
        "--width",
        "128",
        "--height",
        "128",
        "--gravity",
        "north",
        "--frames",
        "17",
        "--steps",
        "1",
        "--decode-strategy",
        "batched",
    ]
    # The usual port belongs to nobody here, so that a service of somebody else is not found.
    result = framefit(
        "generate",
        str(tmp_path / "photo.jpg"),
        "a wall",
        "-o",
        str(out),
        *fields,
        data_dir=data_dir,
        FRAMEFIT_PORT="1",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert "Image: 64x96 is cropped to 128x128: 32 pixels at the bottom are cut (33 % of" in result.stderr
    assert "Decoded all latent frames in one call (exact)" in result.stderr
    with av.open(str(out)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 17
    own = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("FRAMEFIT_DATA_DIR")]
    assert str(data_dir) not in {process.info["environ"]["FRAMEFIT_DATA_DIR"] for process in own}


@pytest.mark.slow
def test_generate_says_in_a_sentence_why_a_model_cannot_be_had(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.linear_gradient("L").convert("RGB").save(photo)
    here = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "FRAMEFIT_PORT": "1"}
    asked = ("generate", str(photo), "a wall", "--model", "ltx-video", "-o", str(tmp_path / "out.mp4"))
    result = framefit(*asked, data_dir=tmp_path / "data", **here)
    assert result.returncode == 1
    assert "Lightricks/LTX-Video is not on this machine and HF_HUB_OFFLINE is set" in result.stderr
    assert "failed" in result.stderr
    assert "done" not in result.stderr
    assert not (tmp_path / "out.mp4").exists()


def test_plan_works_with_nothing_downloaded(tmp_path: Path) -> None:
    arguments = ["plan", "--model", "ltx-video", "--gpu", "12GiB", "--host-memory", "32GiB"]
    found = framefit(*arguments, "--json", data_dir=tmp_path, HF_HUB_OFFLINE="1")
    assert found.returncode == 0, found.stderr
    plan = json.loads(found.stdout)
    assert plan["placement"]["kind"] == "drop_text_encoder"
    assert plan["decode"]["strategy"] == "batched"
    too_small = framefit(
        "plan", "--model", "ltx-video", "--gpu", "2GiB", data_dir=tmp_path, HF_HUB_OFFLINE="1"
    )
    assert too_small.returncode == 1
    assert "needs" in too_small.stdout


def test_doctor_finds_nothing_wrong_here_and_says_what_is_wrong_elsewhere(tmp_path: Path) -> None:
    here = {"HF_ENDPOINT": "http://127.0.0.1:9", "FRAMEFIT_PORT": "0"}  # a hub that nobody can reach
    right = framefit("doctor", "--json", data_dir=tmp_path / "data", **here)
    assert right.returncode == 0, right.stdout
    told = json.loads(right.stdout)
    assert told["ok"]
    standing = {finding["subject"]: finding["standing"] for finding in told["findings"]}
    assert (
        standing.items()
        >= dict.fromkeys(("disk", "database", "port", "gpu", "torch", "encoder"), "ok").items()
    )
    (tmp_path / "file").touch()
    broken = framefit("doctor", data_dir=tmp_path / "file" / "data", FRAMEFIT_MODEL="ltx-video", **here)
    assert broken.returncode == 1
    assert "FRAMEFIT_DATA_DIR" in broken.stdout
    assert "cannot be reached" in broken.stdout


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"FRAMEFIT_PORT": "x"}, "FRAMEFIT_PORT"),
        ({"FRAMEFIT_PROT": "1"}, "FRAMEFIT_PORT"),
        ({"FRAMEFIT_DATABASE_URL": "no address", "FRAMEFIT_PORT": "0"}, "FRAMEFIT_DATABASE_URL"),
    ],
)
def test_a_bad_setting_stops_the_start_with_its_name(
    tmp_path: Path, environ: dict[str, str], named: str
) -> None:
    result = framefit("serve", data_dir=tmp_path, **environ)
    assert result.returncode == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr
