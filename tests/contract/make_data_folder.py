"""Make a small data folder of the version at hand: `python tests/contract/make_data_folder.py 2` makes
`data_folder_2/`.

Its jobs are finished, failed, canceled, queued, and one is denoised but not decoded. Run this at a commit
whose data later versions must be able to open, and commit what it makes.
"""

import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from served_folder import ROOT, Json, ServedFolder

HOST = "host"  # instead of the name of the machine that made the folder
YEAR_SECONDS = 365 * 24 * 3600
PHOTO = {"model": "photo-pan", "width": 128, "height": 128, "num_frames": 9, "prompt": "pan right", "seed": 1}
NOISE = {"model": "tiny", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1, "prompt": "a"}
LONG_DENOISE = {**NOISE, "num_frames": 257, "num_inference_steps": 100}
# Denoised while other jobs are handed in, and decoded in many chunks, so that it can be stopped between them.
LONG = {**NOISE, "num_frames": 257, "num_inference_steps": 30, "decode_strategy": "per_frame"}
KEEP = ("framefit.sqlite3", "jobs", "pictures", "profiles")


def main() -> None:
    """Make the folder beside this file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(__file__).with_name(f"data_folder_{int(sys.argv[1])}")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "data"
        answers = fill(folder)
        make_portable(folder / "framefit.sqlite3")
        target.mkdir()
        for name in KEEP:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, target / "files" / name)
            elif (folder / name).exists():
                (target / "files").mkdir(exist_ok=True)
                shutil.copy(folder / name, target / "files" / name)
    told = json.dumps(answers, indent=1, sort_keys=True).replace(socket.gethostname() + "/", HOST + "/")
    (target / "answers.json").write_text(told + "\n")
    # The commit of the service, whatever was committed to the tests since.
    command = ["git", "log", "-1", "--format=%h", "--", "app", "adaptive"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    (target / "README.md").write_text(
        f"`files/` is a data folder made by `{Path(__file__).name}` with the service of commit {commit}.\n"
        "`answers.json` has its jobs as that version showed them. `test_data_folder.py` opens it.\n"
    )


def fill(folder: Path) -> Json:
    """Bring the folder into its state; returns its jobs, those that ended with the answers about them."""
    image = _picture()
    with ServedFolder(folder, FRAMEFIT_MAX_ATTEMPTS="1") as service:
        finished = service.submit(image, "a request that is repeated", **PHOTO)["id"]
        service.ended(finished)
        failed = service.submit(image, **LONG_DENOISE)["id"]
        service.wait_until(failed, lambda job: job["stage"] == "denoising" and job["progress"] > 0.1)
        os.kill(service.worker_pid(), signal.SIGKILL)
        service.ended(failed, "failed")
    service = ServedFolder(folder)
    denoised = service.submit(image, **LONG)["id"]
    service.wait_until(denoised, lambda job: job["stage"] == "denoising")
    queued = [service.submit(image, **PHOTO, priority=1)["id"], service.submit(image, **NOISE)["id"]]
    canceled = service.submit(image, **PHOTO)["id"]
    service.http.delete(f"/jobs/{canceled}").raise_for_status()
    ended = {"finished": finished, "failed": failed, "canceled": canceled}
    answers = {
        state: {"job": service.job(job_id), "kinds": service.kinds(job_id)} for state, job_id in ended.items()
    }
    service.wait_until(denoised, lambda job: job["stage"] == "decoding" and job["progress"] > 0.8)
    service.kill()
    return {"answers": answers, "queued": queued, "denoised": denoised, "request": PHOTO}


def _picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def make_portable(path: Path) -> None:
    """Leave one database file, without the name of this machine, whose workers are long gone."""
    name = socket.gethostname()
    with sqlite3.connect(path) as database:
        tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_ in database.execute(f"pragma table_info({table})").fetchall():
                if kind.upper() == "TEXT":
                    database.execute(
                        f"update {table} set {column} = replace({column}, ?, ?) where {column} like ?",
                        (f"{name}/", f"{HOST}/", f"%{name}/%"),
                    )
        # A clock that is behind this machine's must not take the lease for one that holds.
        database.execute("update jobs set lease_until = lease_until - ?", (YEAR_SECONDS,))
        database.execute("update workers set heartbeat_at = heartbeat_at - ?", (YEAR_SECONDS,))
    database.execute("vacuum")
    # One file, also after somebody has looked into it; the service turns the write-ahead log on again.
    database.execute("pragma journal_mode = delete")
    database.close()


if __name__ == "__main__":
    main()
