"""The refusal of an image. Knows no format."""


class ImageRejected(ValueError):
    """The bytes are not an acceptable image. `code` is a stable error code for clients."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def unsupported(what: str) -> ImageRejected:
    """The refusal of a picture that is whole but of a kind that would come out wrong; names what it has."""
    return ImageRejected("unsupported_image", f"the image {what}, which is not supported")


def damaged(why: str) -> ImageRejected:
    """The refusal of a picture whose pixels cannot be read."""
    return ImageRejected("broken_image", f"the image is damaged or truncated: {why}")


def too_complex(what: str) -> ImageRejected:
    """The refusal of a file with more parts than a photograph has."""
    return ImageRejected("image_too_complex", f"the image has {what}")
