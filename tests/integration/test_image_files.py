"""The files of the image, as far as they show without an engine: layers, user, labels, settings."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import SECRET_SETTINGS, Settings, setting_variables

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
# What the image and the compose file fix: the published port and the volume belong to them.
FIXED = {"FRAMEFIT_HOST", "FRAMEFIT_PORT", "FRAMEFIT_DATA_DIR"}
APP_LAYER_BYTES = 10_000_000


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name; the last one, which has none, is ''."""
    parts = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)[1:]
    heads = [part.split("\n", 1) for part in parts]
    return {re.sub(r".*? AS (\w+)|.*", r"\1", head): body for head, body in heads}


def copies(body: str) -> list[tuple[str, list[str], str]]:
    """Each COPY of a stage: the stage that it copies from or '', its sources, its target."""
    found = re.findall(r"^COPY (?:--from=(\S+) )?(.+) (\S+)$", body, flags=re.M)
    return [(stage, sources.split(), target) for stage, sources, target in found]


def test_the_layer_of_dependencies_does_not_depend_on_the_app() -> None:
    parts = stages()
    sources = {word for _, words, _ in copies(parts["dependencies"]) for word in words}
    assert sources == {"constraints.txt", "/requirements.txt"}, "no file that an edit of the app changes"
    layers = copies(parts[""])
    assert layers[0][:2] == ("dependencies", ["/opt/framefit"])
    assert [stage for stage, _, _ in layers[1:]] == ["application", "application"]
    assert all("/opt/framefit" not in words for _, words, _ in layers[1:])


def test_an_edit_of_the_app_makes_a_layer_of_less_than_ten_megabytes() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "app", "adaptive"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    models = tuple(f"app/pipelines/{name}/model/" for name in ("builtin", "photo_pan"))
    weights = [name for name in listed if name.startswith(models)]
    of_app = [ROOT / name for name in listed if name not in weights]
    assert sum(path.stat().st_size for path in of_app) < APP_LAYER_BYTES / 2
    assert weights, "they have a layer of their own"


def test_the_user_is_a_number_and_its_group_may_be_any_users() -> None:
    final = stages()[""]
    assert "\nUSER 10001:0\n" in final, "an engine that demands an ordinary user reads numbers only"
    assert re.search(r"chgrp -R 0 .*/data /models", final)
    assert re.search(r"chmod -R g=u .*/data /models", final)
    assert "USER=framefit" in final, "torch asks for the name of a user that has no entry"
    assert "\nWORKDIR /\n" in final, "an engine cannot start in a data folder that the user may not read"


def test_labels_and_base_come_from_arguments() -> None:
    text = (ROOT / "Dockerfile").read_text()
    names = ("title", "description", "version", "revision", "created", "licenses", "base.name", "base.digest")
    for name in names:
        assert f"org.opencontainers.image.{name}=" in text
    assert "${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}}" in text
    given = set(compose_file()["services"]["framefit"]["build"]["args"])
    arguments = set(re.findall(r"^ARG (\w+)", text, flags=re.M))
    assert given == arguments, "Compose can set every argument"


def test_the_health_check_is_the_services_own() -> None:
    assert 'CMD ["python", "-m", "app.service.healthcheck"]' in stages()[""]


def compose_file(name: str = "compose.yaml") -> dict[str, Any]:
    text = (DOCKER / name).read_text()
    parsed: dict[str, Any] = yaml.safe_load(re.sub(r"!reset \S+", "null", text))
    return parsed


def test_compose_passes_every_setting_on() -> None:
    environment = compose_file()["services"]["framefit"]["environment"]
    passed = {name for name in environment if name.startswith("FRAMEFIT_")}
    assert passed | FIXED == setting_variables()
    assert not passed & FIXED


def test_every_name_of_the_example_is_read_by_something() -> None:
    example = (DOCKER / ".env.example").read_text()
    names = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", example, flags=re.M))
    files = "".join((DOCKER / name).read_text() for name in ("compose.yaml", "compose.secrets.yaml"))
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", files))
    environment = set(compose_file()["services"]["framefit"]["environment"])
    assert names <= used | environment | {"COMPOSE_PROFILES"}
    assert {name for name in names if name.startswith("FRAMEFIT_")} <= setting_variables()


def test_a_recreated_container_has_the_host_name_of_the_one_before() -> None:
    assert compose_file()["services"]["framefit"]["hostname"] == "${CONTAINER_HOSTNAME:-framefit}"


@pytest.mark.parametrize("name", compose_file()["services"])
def test_no_container_fills_the_disk_with_its_log_or_the_host_with_processes(name: str) -> None:
    service = compose_file()["services"][name]
    options = service["logging"]["options"]
    assert {"max-size", "max-file"} <= set(options)
    assert "pids_limit" in service
    assert "mem_limit" in service


def test_the_temporary_folder_of_the_service_is_bounded() -> None:
    (mount,) = compose_file()["services"]["framefit"]["tmpfs"]
    assert mount.startswith("/tmp:size=")


def test_the_service_waits_for_its_database_only_where_compose_runs_one() -> None:
    waits = compose_file()["services"]["framefit"]["depends_on"]["postgres"]
    assert waits == {"condition": "service_healthy", "required": False}


def test_every_secret_may_be_a_file_of_compose() -> None:
    parsed = compose_file("compose.secrets.yaml")
    service = parsed["services"]["framefit"]
    files = {name for name in service["environment"] if name.endswith("_FILE")}
    secret = {f"FRAMEFIT_{name.upper()}_FILE" for name in SECRET_SETTINGS if name != "client_key"}
    assert files == secret | {"FRAMEFIT_HF_TOKEN_FILE"}
    assert "hf_token_file" in Settings.model_fields
    for value in service["environment"].values():
        known = re.fullmatch(r"\$\{SECRET_[A-Z_]+:\+/run/secrets/([a-z_]+)\}", value)
        assert known is not None
        assert known[1] in service["secrets"]
        assert known[1] in parsed["secrets"]
