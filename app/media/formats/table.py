"""The formats that a finished video is offered in beside mp4. A new one is a row here and a writer."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """One format: its name, also the end of its file names, and what must be able to write it."""

    name: str
    media_type: str
    codecs: tuple[str, ...] = ()
    container: str | None = None

    def missing(self) -> str | None:
        """Return what this build of PyAV cannot write and the format needs, or None."""
        import av

        for codec in self.codecs:
            try:
                av.codec.Codec(codec, "w")
            except ValueError:  # PyAV's `UnknownCodecError` derives from it
                return f"encoder {codec}"
        if self.container is not None and self.container not in av.formats_available:
            return f"container {self.container}"
        return None


FORMATS: Final[Mapping[str, VideoFormat]] = MappingProxyType(
    {
        each.name: each
        for each in (
            VideoFormat("webm", "video/webm", ("libvpx-vp9", "libopus"), "webm"),
            VideoFormat("gif", "image/gif", ("gif",), "gif"),
            VideoFormat("webp", "image/webp", ("libwebp_anim",), "webp"),
            VideoFormat("png.zip", "application/zip"),
        )
    }
)
