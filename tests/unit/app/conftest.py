"""What the service's tests share: a store on a real SQLite file, an app over it, pictures, a profile."""

import io
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import postgres_server as postgres_server_process
import pytest
from PIL import Image
from sqlalchemy import create_engine, make_url, text
from starlette.testclient import TestClient

from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.types import VaeTraits
from app.api import create_app
from app.config import Settings
from app.jobs import JobSpec
from app.models.entries import ModelEntry
from app.scheduling.admission import LoadProfile
from app.store import JobStore, Rules

MIB = 2**20

TRAITS = VaeTraits(
    family="ltx",
    vae_class="AutoencoderKLLTXVideo",
    latent_channels=128,
    spatial_ratio=32,
    temporal_ratio=8,
    first_frame_alone=True,
    exact_streaming=True,
    frames_independent=False,
)


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    try:
        with postgres_server_process.running() as url:
            yield url
    except postgres_server_process.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def empty_postgres(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of its own on the private server."""
    with _new_database(postgres_server, "template0") as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[tuple[str, str]]:
    """The server, and the name of a database with the newest schema, to be copied."""
    with _new_database(postgres_server, "template0") as url:
        _migrate(url)
        yield postgres_server, str(make_url(url).database)


@contextmanager
def _new_database(server_url: str, template: str) -> Iterator[str]:
    name = f"t{secrets.token_hex(6)}"
    # A test may start the server again.
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with admin.connect() as connection:
        connection.execute(text(f"create database {name} template {template}"))
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    admin.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("schema") / "jobs.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    store = JobStore(url)
    store.migrate()
    store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the newest schema; every test of the store runs over both kinds."""
    if request.param == "sqlite":
        path = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "jobs.sqlite3")
        yield f"sqlite:///{path}"
    else:
        with _new_database(*request.getfixturevalue("migrated_postgres")) as url:
            yield url


@pytest.fixture
def open_store(database_url: str, clock: Clock) -> Iterator[Callable[..., JobStore]]:
    """Opens stores over one database; more than one stand for several processes."""
    opened: list[JobStore] = []

    def open_one(**rules: object) -> JobStore:
        store = JobStore(database_url, clock=clock, rules=Rules(**rules))  # type: ignore[arg-type]
        opened.append(store)
        store.migrate()
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., JobStore]) -> JobStore:
    return open_store()


def spec_of(**changes: object) -> JobSpec:
    values: dict[str, object] = {
        "prompt": "a boat sails by",
        "model": "tiny",
        "width": 256,
        "height": 256,
        "num_frames": 25,
        "fps": 12,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "seed": 7,
    }
    return JobSpec.model_validate({**values, **changes})


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    return spec_of


def picture_of(kind: str = "JPEG", size: tuple[int, int] = (64, 48), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    return picture_of


@pytest.fixture
def picture() -> bytes:
    return picture_of()


def traced(entry: ModelEntry) -> MemoryProfile:
    """A profile of round numbers: a MiB a latent pixel batched, a quarter of that for one frame."""
    batched = Curve((1, 5), (0.25 * MIB, 1.25 * MIB))
    streamed = {1: Curve((1,), (0.25 * MIB,)), 2: Curve((1,), (0.5 * MIB,))}
    return MemoryProfile(TRAITS, entry.dtype, "0", batched, streamed)


@pytest.fixture
def load_profile() -> LoadProfile:
    return traced


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, poll_seconds=0.02)


@pytest.fixture
def client_of(migrated_sqlite: Path) -> Iterator[Callable[..., TestClient]]:
    """Starts apps, and stops them when the test is over. A data folder without a database gets an empty one
    of the newest schema, which an app would make in twice the time that all the rest of its start takes.
    """
    clients: list[TestClient] = []

    def start(settings: Settings, **options: object) -> TestClient:
        database = settings.data_dir / "framefit.sqlite3"
        if settings.data_dir.is_dir() and not database.exists():
            shutil.copy(migrated_sqlite, database)
        app = create_app(settings, **{"load_profile": traced, **options})  # type: ignore[arg-type]
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(client_of: Callable[..., TestClient], settings: Settings) -> TestClient:
    return client_of(settings)


@pytest.fixture
def app_store(client: TestClient) -> JobStore:
    """The store behind `client`."""
    store: JobStore = client.app.state.service.store  # type: ignore[attr-defined]
    return store


@pytest.fixture
def submit(client: TestClient, picture: bytes) -> Callable[..., dict[str, object]]:
    """Hands in a job and returns its JSON."""

    def post(**fields: object) -> dict[str, object]:
        form = {"prompt": "a boat sails by", **{name: str(value) for name, value in fields.items()}}
        answer = client.post("/generate", data=form, files={"image": ("photo.jpg", picture)})
        assert answer.status_code == 202, answer.text
        body: dict[str, object] = answer.json()
        return body

    return post


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
