"""Writes the pictures and the sound of an open mp4 in each format. Holds a few frames at a time.

Times are exact or rounded from the start of the video, never from frame to frame: the whole keeps its length.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import av
import numpy as np
from av.filter import Graph
from PIL import Image

from app.frame_rate import rate_as_json
from app.media.colorimetry.video_colour import BT709, LIMITED
from app.media.formats.reading import clip_of, opened, read_frame
from app.media.metadata.note import Note, note_in
from app.media.metadata.png_text import with_note
from app.media.video_pixels import Picture

# Near transparent, and about three times as fast as libvpx's default.
VP9: Final = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
OPUS_RATE: Final = 48_000
OPUS_BIT_RATE: Final = 128_000
WEBP: Final = {"quality": "90", "compression_level": "3"}
# GIF counts time in hundredths of a second, and most programs show a frame that is shorter than two of them
# for ten. A faster video loses frames, not its speed.
GIF_TICKS: Final = 100
GIF_FASTEST: Final = Fraction(50)
PNG_LEVEL: Final = 1


def write_webm(video: Path, out: Path) -> int:
    """VP9 with the frames' own numbers, and Opus if there is sound. Returns the number of frames."""
    with opened(video) as source, av.open(str(out), "w", format="webm") as made:
        clip = clip_of(source)
        made.metadata.update(note_in(source.metadata).tags())
        stream = made.add_stream("libvpx-vp9", rate=clip.fps, options=VP9)
        (stream.width, stream.height), stream.pix_fmt = clip.size, "yuv420p"
        context = stream.codec_context
        context.thread_count = 2
        context.time_base = 1 / clip.fps
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        sound = _sound(source, made)
        count = 0
        wanted = [clip.stream, *source.streams.audio[:1]]
        for packet in source.demux(wanted):
            for frame in packet.decode():
                if isinstance(frame, av.AudioFrame):
                    made.mux(sound.encode(frame))
                    continue
                frame.pts, frame.time_base = count, context.time_base
                made.mux(stream.encode(frame))
                count += 1
        made.mux(stream.encode(None))
        if sound is not None:
            made.mux(sound.encode(None))
    return count


def _sound(source: Any, made: Any) -> Any:
    if not source.streams.audio:
        return None
    heard = source.streams.audio[0]
    stream = made.add_stream("libopus", rate=OPUS_RATE, layout=heard.layout.name)
    stream.bit_rate = OPUS_BIT_RATE
    return stream


def write_gif(video: Path, out: Path) -> int:
    """GIF with one palette of 256 colours, made for this video. Returns the number of frames."""
    palette = _palette(video)
    with opened(video) as source:
        clip = clip_of(source)
        shown = gif_times(clip.stream.frames, clip.fps)
        options = {"loop": "0", "final_delay": str(shown[-1].ticks)}
        with av.open(str(out), "w", format="gif", options=options) as made:
            stream = made.add_stream("gif", rate=min(clip.fps, GIF_FASTEST))
            (stream.width, stream.height), stream.pix_fmt = clip.size, "pal8"
            stream.codec_context.time_base = Fraction(1, GIF_TICKS)
            painter = _Painter(clip.size, palette)
            starts = {each.number: each.start for each in shown}
            for number, picture in enumerate(clip.pictures()):
                if number in starts:
                    made.mux(stream.encode(painter.paint(picture, starts[number])))
            made.mux(stream.encode(None))
    return len(shown)


class Shown(NamedTuple):
    """A frame of the video that a GIF shows: its number there, its start and its length in 1/100 s."""

    number: int
    start: int
    ticks: int


def gif_times(frames: int, fps: Fraction) -> list[Shown]:
    """The frames that a GIF shows: all of them up to 50 a second, else evenly spread ones."""
    rate = min(fps, GIF_FASTEST)
    count = max(1, round(frames * rate / fps))
    starts = [round(number * GIF_TICKS / rate) for number in range(count + 1)]
    return [
        Shown(int(number * fps / rate), start, end - start)
        for number, (start, end) in enumerate(pairwise(starts))
    ]


def _palette(video: Path) -> Any:
    """A picture of the 256 colours that show the whole video best."""
    with opened(video) as source:
        clip = clip_of(source)
        graph = Graph()
        palette = graph.add("palettegen", "stats_mode=full:reserve_transparent=0")
        _buffer(graph, clip.size).link_to(palette)
        palette.link_to(graph.add("buffersink"))
        graph.configure()
        for number, picture in enumerate(clip.pictures()):
            graph.push(_frame(coarse(picture), number))
        graph.push(None)
        return graph.pull()


class _Painter:
    """Paints pictures with the colours of a palette, with an ordered dither that does not flicker."""

    def __init__(self, size: tuple[int, int], palette: Any) -> None:
        self._graph = Graph()
        painted = self._graph.add("paletteuse", "dither=bayer:bayer_scale=4")
        self._pictures = _buffer(self._graph, size)
        colours = self._graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format, time_base=Fraction(1)
        )
        self._pictures.link_to(painted, 0, 0)
        colours.link_to(painted, 0, 1)
        painted.link_to(self._graph.add("buffersink"))
        self._graph.configure()
        palette.pts, palette.time_base = 0, Fraction(1)
        colours.push(palette)
        colours.push(None)

    def paint(self, picture: Picture, pts: int) -> Any:
        self._pictures.push(_frame(coarse(picture), pts))
        painted = self._graph.pull()
        painted.pts, painted.time_base = pts, Fraction(1, GIF_TICKS)
        return painted


def coarse(picture: Picture) -> Picture:
    """Six bits of each channel: FFmpeg looks up each colour once, and grain has a new one in every pixel."""
    made: Picture = np.bitwise_or(
        picture & np.uint8(0xFC), picture >> np.uint8(6)
    )  # black and white stay as they are
    return made


def _buffer(graph: Any, size: tuple[int, int]) -> Any:
    width, height = size
    return graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, GIF_TICKS)
    )


def _frame(picture: Picture, pts: int, form: str = "rgb24") -> Any:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if form != "rgb24":
        frame = frame.reformat(format=form)
    frame.pts, frame.time_base = pts, Fraction(1, GIF_TICKS)
    return frame


def write_webp(video: Path, out: Path) -> int:
    """Animated WebP; times in milliseconds. Returns the number of frames."""
    milliseconds = Fraction(1, 1000)
    with opened(video) as source, av.open(str(out), "w", format="webp", options={"loop": "0"}) as made:
        clip = clip_of(source)
        stream = made.add_stream("libwebp_anim", rate=clip.fps, options=WEBP)
        (stream.width, stream.height), stream.pix_fmt = clip.size, "bgra"
        stream.codec_context.time_base = milliseconds
        count = 0
        for count, picture in enumerate(clip.pictures(), 1):
            start, end = (round(1000 * n / clip.fps) for n in (count - 1, count))
            frame = _frame(picture, start, "bgra")
            frame.time_base, frame.duration = milliseconds, end - start
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return count


def write_archive(video: Path, out: Path) -> int:
    """A ZIP file of PNG files, and `video.json` with their rate. Returns the number of frames."""
    with opened(video) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        clip, note = clip_of(source), note_in(source.metadata)
        count = 0
        for count, picture in enumerate(clip.pictures(), 1):
            made.writestr(f"frame-{count - 1:05}.png", png_of(picture, note))
        width, height = clip.size
        told: dict[str, Any] = {
            "frames": count,
            "width": width,
            "height": height,
            "fps": rate_as_json(clip.fps),
            "source": "mp4",
            "pixels": "lossy",
            **note.tags(),
        }
        made.writestr("video.json", json.dumps(told, indent=2, ensure_ascii=False))
    return count


def png_of(picture: Picture, note: Note) -> bytes:
    """The picture as a PNG file with the note in it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=PNG_LEVEL)
    return with_note(file.getvalue(), note)


def write_frame(video: Path, number: int) -> bytes:
    """One frame as a PNG file; see `read_frame`."""
    with opened(video) as source:
        note = note_in(source.metadata)
    return png_of(read_frame(video, number), note)


WRITERS: Final[Mapping[str, Callable[[Path, Path], int]]] = {
    "webm": write_webm,
    "gif": write_gif,
    "webp": write_webp,
    "png.zip": write_archive,
}
