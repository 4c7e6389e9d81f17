"""The photographs that the built-in model is fitted to, and those held out: files and licence terms.

Owns the lists and loading. Training photos are public domain, CC0 or CC BY. Held-out photos may have other
terms, because they are only used to measure. Must not know clips or models.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

LONGEST_SHORT_SIDE_PX = 768


class Source(Enum):
    """A package that ships photographs; the value is the command that installs it."""

    SCIKIT_IMAGE = "pip install scikit-image"
    SCIKIT_LEARN = "pip install scikit-learn"
    LOMIRI_16 = "apt-get install lomiri-wallpapers-16.04"
    LOMIRI_20 = "apt-get install lomiri-wallpapers-20.04"
    MATE = "apt-get install mate-backgrounds"


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph: its file inside a package, and the licence terms of its use."""

    name: str
    source: Source
    file: str
    terms: str
    weight: float = 1.0


def _lomiri(name: str, file: str, author: str, terms: str = "CC BY 4.0", weight: float = 1.5) -> Photo:
    return Photo(name, Source.LOMIRI_16, file, f"{terms}, {author}, 2018", weight)


TRAINING = (
    Photo("astronaut", Source.SCIKIT_IMAGE, "astronaut.png", "public domain, NASA", 1.5),
    Photo("camera", Source.SCIKIT_IMAGE, "camera.png", "CC0, Lav Varshney", 0.5),
    Photo("rocket", Source.SCIKIT_IMAGE, "rocket.jpg", "public domain, SpaceX"),
    Photo("retina", Source.SCIKIT_IMAGE, "retina.jpg", "CC0, Mikael Häggström", 0.3),
    Photo("hubble", Source.SCIKIT_IMAGE, "hubble_deep_field.jpg", "public domain, NASA", 0.5),
    Photo("brick", Source.SCIKIT_IMAGE, "brick.png", "CC0, CC0Textures", 0.4),
    Photo("grass", Source.SCIKIT_IMAGE, "grass.png", "CC0, CC0Textures", 0.4),
    Photo("gravel", Source.SCIKIT_IMAGE, "gravel.png", "CC0, CC0Textures", 0.4),
    Photo("china", Source.SCIKIT_LEARN, "china.jpg", "CC BY 2.0, danielbuechele", 1.5),
    Photo("flower", Source.SCIKIT_LEARN, "flower.jpg", "CC BY 2.0, vultilion", 1.5),
    _lomiri("bowl", "Picture_0B_by_freespace.jpg", 'Trevor "Freespace"'),
    _lomiri("brushes", "Picture_1A_by_freespace.jpg", 'Trevor "Freespace"'),
    _lomiri("wine", "Wine_by_Jakkub_Mede.jpg", "Jakub Mede"),
    _lomiri("meadow", "aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi"),
    _lomiri("dogs", "friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi"),
    _lomiri("stream", "life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi"),
    _lomiri("peaks", "picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi"),
    _lomiri("dandelion", "seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0"),
    _lomiri("sunset", "sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi"),
    _lomiri("colours", "umang_by_Abhishek_Mudgal.jpg", "Abhishek Mudgal", weight=0.5),
)

HELD_OUT = (
    Photo("chelsea", Source.SCIKIT_IMAGE, "chelsea.png", "CC0, Stefan van der Walt"),
    Photo("coffee", Source.SCIKIT_IMAGE, "coffee.png", "CC0, Rachel Michetti"),
    Photo("bridge", Source.LOMIRI_16, "Bridge_by_Sander_Klootwijk.jpg", "CC BY-SA 4.0, Sander Klootwijk"),
    Photo("dragonfly", Source.LOMIRI_16, "Dragonfly_by_Bolly.jpg", "CC BY-SA 4.0, Bolly"),
    Photo("nuthatch", Source.LOMIRI_20, "Kleiber_by_Lukas_Baubkus.jpg", "CC BY-SA 3.0, Lukas Baubkus"),
    Photo("drop", Source.MATE, "mate/nature/Aqua.jpg", "GPL 2+, Charles Barbin"),
    Photo("dune", Source.MATE, "mate/nature/Dune.jpg", "GPL 2+, Marco Cogoni, Hylke Bons"),
    Photo("garden", Source.MATE, "mate/nature/Garden.jpg", "GPL 2+, Charles Barbin"),
    Photo("ladybird", Source.MATE, "mate/nature/LadyBird.jpg", "GPL 2+, Charles Barbin"),
    Photo("raindrops", Source.MATE, "mate/nature/RainDrops.jpg", "GPL 2+, blackcombwhistler07"),
    Photo("storm", Source.MATE, "mate/nature/Storm.jpg", "GPL 2+, Sergey Nazarov"),
    Photo("seeds", Source.MATE, "mate/nature/TwoWings.jpg", "GPL 2+, Charles Barbin, Hylke Bons"),
)


def locate(photo: Photo, backgrounds: Path) -> Path:
    """The photo's file. `backgrounds` is the Debian packages' folder, normally /usr/share/backgrounds.

    Raises FileNotFoundError with the command that installs the package.
    """
    match photo.source:
        case Source.SCIKIT_IMAGE:
            path = _package_folder("skimage") / "data" / photo.file
        case Source.SCIKIT_LEARN:
            path = _package_folder("sklearn") / "datasets" / "images" / photo.file
        case _:
            path = backgrounds / photo.file
    if not path.is_file():
        raise FileNotFoundError(f"photo {photo.name!r} is not at {path}: {photo.source.value}")
    return path


def load(photo: Photo, backgrounds: Path, short_side_px: int = LONGEST_SHORT_SIDE_PX) -> Pixels:
    """RGB pixels [height, width, 3], shrunk so that the shorter side is at most `short_side_px`."""
    with Image.open(locate(photo, backgrounds)) as file:
        image = file.convert("RGB")
    scale = short_side_px / min(image.size)
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def square(photo: Photo, backgrounds: Path, side_px: int) -> Image.Image:
    """The middle square of a photo, resized to `side_px`, as a request would send it."""
    with Image.open(locate(photo, backgrounds)) as file:
        image = file.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.crop(box).resize((side_px, side_px), Image.Resampling.LANCZOS)


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the training photos need {name}: pip install 'framefit[train]'")
    return Path(spec.origin).parent
