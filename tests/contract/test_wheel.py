"""A wheel installed outside the checkout serves its page, migrates, finds its model and decodes."""

import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from served_folder import ROOT, ServedFolder

PACKAGES = ("adaptive", "app")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")
STATIC = "app/api/static/"
WHERE = "import adaptive, app; print(adaptive.__file__); print(app.__file__)"
DECODE = """
import torch
from diffusers import AutoencoderKLLTXVideo

import adaptive

torch.manual_seed(0)
channels = dict(block_out_channels=(8, 16, 16, 16), decoder_block_out_channels=(8, 16, 16, 16))
layers = dict(layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5)
vae = AutoencoderKLLTXVideo(latent_channels=8, **channels, **layers).eval()
latents = torch.randn(1, 8, 3, 2, 2)
with torch.no_grad():
    expected = vae.decode(latents, return_dict=False)[0]
decoded = adaptive.decode(vae, latents, strategy="per_frame")
torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-4)
print(adaptive.__file__)
"""


@dataclass(frozen=True)
class Installed:
    """A wheel, the folder it is installed into, and a folder outside the checkout to run it from."""

    wheel: Path
    target: Path
    cwd: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.target)}

    def python(self, code: str) -> list[str]:
        """The lines that the code prints, run with the installed packages."""
        environ = {**os.environ, **self.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=self.cwd, env=environ, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


def source_files() -> list[str]:
    """Files of both packages, by their paths in the checkout; what git ignores is left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def pip(*arguments: str | Path) -> None:
    command: Sequence[str | Path] = (sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of the checkout's files, built from a copy and installed without its requirements."""
    work = tmp_path_factory.mktemp("wheel")
    for name in (*BUILD_FILES, *source_files()):
        copy = work / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    offline = ("--no-deps", "--no-index", "--quiet")
    pip("wheel", *offline, "--no-build-isolation", "--wheel-dir", work / "built", work / "source")
    (wheel,) = (work / "built").glob("framefit-*.whl")
    pip("install", *offline, "--no-compile", "--target", work / "installed", wheel)
    (work / "elsewhere").mkdir()
    return Installed(wheel, work / "installed", work / "elsewhere")


@pytest.fixture(scope="module")
def service(installed: Installed) -> Iterator[ServedFolder]:
    """`framefit serve` of the installed package."""
    command = (sys.executable, str(installed.target / "bin" / "framefit"))
    with ServedFolder(
        installed.cwd / "data", command=command, cwd=installed.cwd, **installed.environ
    ) as served:
        yield served


def test_the_wheel_has_every_file_of_both_packages(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        missing = set(source_files()) - set(wheel.namelist())
    assert not missing, f"not in the wheel, see [tool.setuptools] in pyproject.toml: {sorted(missing)}"


def test_the_installed_packages_are_those_that_run(installed: Installed) -> None:
    for line in installed.python(WHERE):
        assert Path(line).is_relative_to(installed.target)


def test_the_page_and_each_of_its_files_are_served(installed: Installed, service: ServedFolder) -> None:
    files = [path for path in (installed.target / STATIC).rglob("*") if path.is_file()]
    assert len(files) == len([name for name in source_files() if name.startswith(STATIC)]) > 1
    for path in files:
        name = path.relative_to(installed.target / STATIC)
        assert service.http.get(f"/static/{name}").content == path.read_bytes()
    assert service.http.get("/").content == (installed.target / STATIC / "index.html").read_bytes()


def test_the_service_is_healthy_and_knows_its_models(service: ServedFolder) -> None:
    assert service.http.get("/healthz").json()["status"] == "ok"
    models = service.http.get("/models").json()["models"]
    assert "photo-pan" in [model["name"] for model in models]


def test_the_migrations_have_made_the_database(installed: Installed, service: ServedFolder) -> None:
    assert service.http.get("/jobs").status_code == 200
    with sqlite3.connect(installed.cwd / "data" / "framefit.sqlite3") as database:
        (revision,) = database.execute("select version_num from alembic_version").fetchone()
    database.close()
    (newest,) = sorted(installed.target.glob("app/**/migrations/versions/0*.py"))[-1:]
    assert newest.name.startswith(f"{revision}_")


def test_a_job_of_the_built_in_model_succeeds(installed: Installed, service: ServedFolder) -> None:
    photo = (installed.target / "app" / "assets" / "demo.jpg").read_bytes()
    fields = {"model": "photo-pan", "width": 128, "height": 128, "num_frames": 9}
    job_id = service.submit(photo, prompt="pan right", **fields)["id"]
    assert service.ended(job_id)["result"]["frames"] == 9
    assert service.http.get(f"/jobs/{job_id}/video").content[4:8] == b"ftyp"


def test_the_library_decodes(installed: Installed) -> None:
    (where,) = installed.python(DECODE)
    assert Path(where).is_relative_to(installed.target)
