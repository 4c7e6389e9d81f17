"""The images of one request: checked at most once, and measured."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from app.fields.keyframes import PICTURES
from app.media.fit import Size
from app.media.images import ImageInfo, ImageLimits, ImageRejected, check_image

FIELDS = ("image", "last_image", *PICTURES)


class UploadedPictures:
    """The images of a request by field name. Each is checked when its size is first asked for.

    `place` is held while a large image is decoded.
    """

    def __init__(
        self,
        images: Mapping[str, bytes],
        limits: ImageLimits,
        place: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._images = {name: images[name] for name in FIELDS if name in images}
        self._limits = limits
        self._place = place
        self._checked: dict[str, ImageInfo] = {}

    def size(self, name: str = "image") -> Size | None:
        """Return the upright size in pixels, or None if there is no such image. Raises `ImageRejected`."""
        if name not in self._images:
            return None
        if name not in self._checked:
            try:
                self._checked[name] = check_image(self._images[name], self._limits, self._place)
            except ImageRejected as error:
                if name == "image":
                    raise
                raise ImageRejected(error.code, f"{name}: {error}") from None
        info = self._checked[name]
        return info.width, info.height

    @property
    def given(self) -> frozenset[str]:
        """The names of the images."""
        return frozenset(self._images)

    def measured(self) -> dict[str, Any]:
        """Return the fields of a `JobSpec` that hold the sizes of the images. Raises `ImageRejected`."""
        sizes = {name: "{}x{}".format(*size) for name in FIELDS if (size := self.size(name)) is not None}
        keyframes = tuple(sizes.pop(name) for name in PICTURES if name in sizes)
        return {f"{name}_size": size for name, size in sizes.items()} | {"keyframe_sizes": keyframes}
