"""Decodes on a pretended card whose neighbour takes and gives memory at random, and whose allocations fail:

    python tests/bench/card_campaign.py --decodes 1000 --seed 1

Each decode must end with the frames of an undisturbed one, and decode no latent frame twice. Writes
tests/bench/results/card_campaign.md; see tests/accelerator for the card.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE / "results" / "card_campaign.md"
FAMILIES = ("wan-2.1", "ltx2-noncausal", "svd", "kl", "cosmos", "magvit", "qwenimage")
SINGLE = 2e-5


def start(arguments: list[str]) -> int:
    """Run this script again in a process that has a pretended card."""
    sys.path[:0] = [str(HERE.parent / "accelerator"), str(HERE.parent)]
    import nvml_stub
    from pretended import CardSpec, Machine, environment, unavailable

    if reason := unavailable():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine.create(Path(folder, "cards"), [CardSpec()])
        environ = environment(machine, nvml_stub.build(Path(folder)))
        return subprocess.run([sys.executable, __file__, *arguments], env=environ, check=False).returncode


def campaign(decodes: int, seed: int, deadline: float) -> tuple[Counter[str], float]:
    """Counts of what happened, and the largest relative error."""
    import torch
    from pretended.start import visible_cards
    from stream_vaes import latents_of, relative_error, shared

    from adaptive.decoding.decoder import AdaptiveDecoder
    from adaptive.planning.planner import Policy
    from adaptive.stream import decode_whole

    draw, card = random.Random(seed), visible_cards()[0]
    counts: Counter[str] = Counter()
    worst = 0.0
    for _ in range(decodes):
        if time.monotonic() > deadline:
            break
        counts["decodes"] += 1
        card.ballast_bytes, card.fail_in = 0, -1
        vae = shared(draw.choice(FAMILIES)).to("cuda:0")
        latents = latents_of(vae, draw.randint(2, 5), seed=draw.randrange(99)).to("cuda:0")
        expected = decode_whole(vae, latents).cpu()
        fed: list[int] = []

        def act(event: object, fed: list[int] = fed) -> None:
            kind, data = event.kind, event.data  # type: ignore[attr-defined]
            counts[kind] += 1
            if kind == "chunk":
                fed.append(data["latent_frames"])
            if draw.random() < 0.4:
                card.leave(draw.choice((0, 2, 8, 64, 2048)) * 2**20)
                card.fail_in = draw.choice((-1, draw.randrange(40)))

        def returns(_needed_bytes: int) -> bool:
            counts["waits"] += 1
            card.ballast_bytes, card.fail_in = 0, -1
            return True

        policy = Policy(reserve_bytes=draw.choice((0, 64)) * 2**20)
        decoder = AdaptiveDecoder(vae, on_event=act, policy=policy, wait_for_memory=returns)
        plan = decoder.plan(latents)
        card.fail_in = draw.choice((-1, draw.randrange(200)))
        frames = [part.cpu() for part in decoder.frames(latents, resume_plan=plan)]
        error = relative_error(torch.cat(frames, 2), expected)
        worst = max(worst, error)
        counts["exact"] += error < SINGLE
        counts["no frame twice"] += sum(fed) == latents.shape[2]
    return counts, worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600, help="Begin no decode after so long.")
    options = parser.parse_args()
    if "PRETENDED_CARDS" not in os.environ:
        return start(sys.argv[1:])
    started = time.monotonic()
    asked = ["git", "rev-parse", "--short", "HEAD"]  # before the run: it may be another one afterwards
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    counts, worst = campaign(options.decodes, options.seed, started + options.seconds)
    lines = [
        "# Decodes on a pretended card whose memory moves",
        "",
        f"Commit {commit}, seed {options.seed}, {time.monotonic() - started:.0f} s, load average "
        f"at the start {load}. Tiny VAEs of {len(FAMILIES)} families. A neighbour takes and gives memory "
        "at events; allocations fail.",
        "",
        "| | |",
        "|---|---|",
        f"| decodes | {counts['decodes']} |",
        f"| exact (relative error below {SINGLE:g}) | {counts['exact']} |",
        f"| without a latent frame decoded twice | {counts['no frame twice']} |",
        f"| largest relative error | {worst:.1e} |",
        f"| out-of-memory events | {counts['oom']} |",
        f"| changes of the chunk size | {counts['replan']} |",
        f"| waits in mid-decode | {counts['waits']} |",
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if counts["exact"] == counts["no frame twice"] == counts["decodes"] else 1


if __name__ == "__main__":
    sys.exit(main())
