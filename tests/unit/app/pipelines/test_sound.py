"""Sound beside a video: as long as the video, in time with it, whole after a crash."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adaptive.errors import NonFiniteValues
from adaptive.pipelines.recorded_call import RecordedDecode, Sound, load_clip, save_calls
from adaptive.types import VideoShape
from app.media.audio import AudioSamples
from app.media.video import VideoWriter

RATE = 16_000
FPS = 8
FRAMES = 17


def tone(seconds: float, channels: int = 2) -> NDArray[np.float32]:
    """A tone that is loud in its second half only."""
    times = np.arange(round(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * 440 * times) * np.where(times < seconds / 2, 0.05, 0.8)
    return np.tile(wave.astype(np.float32), (channels, 1))


def written(path: Path, samples: NDArray[np.float32]) -> tuple[list[int], NDArray[np.float32], str]:
    """Times of the packets in the order of the file, what is heard, and the layout."""
    shape = VideoShape(FRAMES, 64, 64)
    with VideoWriter(path, shape, FPS, AudioSamples(samples, RATE)) as writer:
        for level in range(FRAMES):
            writer.write(np.full((1, 64, 64, 3), level * 10, np.uint8))
        writer.finish()
    with av.open(str(path)) as file:
        kinds = [packet.stream.type for packet in file.demux() if packet.size]
    with av.open(str(path)) as file:
        assert file.streams.audio[0].codec_context.name == "aac"
        layout = file.streams.audio[0].codec_context.layout.name
        heard = [frame.to_ndarray() for frame in file.decode(audio=0)]
    with av.open(str(path)) as file:
        assert len(list(file.decode(video=0))) == FRAMES
    order = [index for index, kind in enumerate(kinds) if kind == "audio"]
    return order, np.concatenate(heard, 1), layout


@pytest.mark.parametrize("seconds", [0.5, FRAMES / FPS, 4.0])
def test_sound_is_cut_or_filled_to_the_length_of_the_video(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "video.mp4"
    _, heard, layout = written(path, tone(seconds))
    assert layout == "stereo"
    assert abs(heard.shape[1] - FRAMES * RATE / FPS) <= 1024  # one packet of AAC
    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        lengths = [float(stream.duration * stream.time_base) for stream in (video, audio)]
        assert abs(lengths[0] - lengths[1]) <= 1024 / RATE
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")


def test_sound_keeps_time_and_lies_between_the_frames(tmp_path: Path) -> None:
    order, heard, _ = written(tmp_path / "video.mp4", tone(FRAMES / FPS))
    middle = heard.shape[1] // 2
    loud = [np.abs(heard[:, middle + at : middle + at + 1600]).max() for at in (-4000, 2400)]
    assert loud[0] < 0.2
    assert loud[1] > 0.6
    assert order[0] < FRAMES  # not all behind the video


def test_one_channel_is_mono_and_three_are_refused(tmp_path: Path) -> None:
    assert written(tmp_path / "video.mp4", tone(1.0, channels=1))[2] == "mono"
    with pytest.raises(ValueError, match=r"\[1 or 2, samples\]"):
        AudioSamples(tone(1.0, channels=3), RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_samples_are_refused_with_their_number(value: float) -> None:
    samples = tone(1.0)
    samples[:, :100] = value
    with pytest.raises(NonFiniteValues, match=r"200 of 32,000 values of the sound are not finite") as caught:
        AudioSamples(samples, RATE)
    assert (caught.value.stage, caught.value.values, caught.value.of) == ("sound", 200, 32_000)


def test_sound_is_kept_with_the_latents(tmp_path: Path) -> None:
    sound = Sound(torch.from_numpy(tone(0.1)), RATE)
    save_calls([RecordedDecode(torch.zeros(1, 4, 2, 2, 2), keep=(4, 9))], tmp_path / "latents", sound)
    clip = load_clip(tmp_path / "latents")
    assert clip.sound is not None
    assert torch.equal(clip.sound.waveform, sound.waveform)
    assert clip.sound.sample_rate == RATE
    assert clip.calls[0].keep == (4, 9)
