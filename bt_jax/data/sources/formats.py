"""The suffixes of image files: those of the formats that the installed Pillow decodes."""

import functools
import importlib
import re
from collections import Counter

from PIL import Image, features

# Formats that Pillow opens but cannot decode without help, or whose pixels have no defined range (FITS).
NO_PIXELS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Pillow registers these formats even if it was built without their library.
LIBRARIES = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "MPO": "jpg", "WEBP": "webp"}
# Files with these suffixes are usually not images: depth maps (floating point), point clouds.
OTHER_USES = {".pfm", ".pcd"}
# Packages that add formats to Pillow, and the function that registers them; None: the import registers them.
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}
# Suffixes of images that Pillow may be unable to decode.
IMAGE_LIKE = {
    *(".avif", ".webp", ".heic", ".heif", ".hif", ".jxl", ".jxr", ".wdp", ".jp2", ".exr", ".hdr", ".svg", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
    *(".fits", ".fit", ".pfm", ".eps", ".wmf", ".emf"),
}
NO_SUFFIX, ODD_SUFFIX = "without a suffix", "with other suffixes"
HIDDEN = "hidden"  # images and folders whose names start with a dot


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes, as ".jpg", of all formats that the installed Pillow and its installed plug-ins decode."""
    add_plugins()
    Image.init()
    # Pillow opens an MPO file, several JPEG images in one, as JPEG.
    readable = {
        name
        for name in (*Image.OPEN, "MPO")
        if name not in NO_PIXELS and features.check(LIBRARIES.get(name, "pil"))  # "pil" is always available
    }
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable) - OTHER_USES


@functools.cache
def add_plugins() -> None:
    """Registers the installed PLUGINS in Pillow."""
    for package, function in PLUGINS.items():
        try:
            module = importlib.import_module(package)
            if function:
                getattr(module, function)()
        except Exception:  # not installed, or for another version of Pillow: its files are left out and counted
            continue


def kind(suffix: str) -> str:
    """The name under which files with a non-image suffix are counted."""
    if not suffix:
        return NO_SUFFIX
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9_~-]{0,7}", suffix) else ODD_SUFFIX


def left_out(skipped: dict[str, int]) -> str:
    """One line about the files that were left out, by `kind`; "" if there are none."""
    alike = Counter({name: count for name, count in skipped.items() if name in IMAGE_LIKE})
    hidden = skipped.get(HIDDEN, 0)
    others = Counter(skipped) - alike - Counter({HIDDEN: hidden})
    parts = []
    if alike:
        fix = ", pip install pillow-heif" if alike.keys() & {".heic", ".heif", ".hif"} else ""
        parts.append(f"{_number(alike, 'image')} that the installed Pillow cannot decode ({_listed(alike)}{fix})")
    if others:
        parts.append(f"{_number(others, 'file')} of other kinds ({_listed(others)})")
    if hidden:
        parts.append(f"{hidden} hidden {'image or folder' if hidden == 1 else 'images or folders'}")
    return f"{'WARNING: ' if alike else ''}left out: {', '.join(parts)}" if parts else ""


def _number(counts: Counter, word: str) -> str:
    return f"{counts.total()} {word}{'s' * (counts.total() != 1)}"


def _listed(counts: Counter, most: int = 8) -> str:
    named = [f"{count} {name}" for name, count in counts.most_common(most)]
    rest = counts.total() - sum(count for _, count in counts.most_common(most))
    return ", ".join(named) + (f", {rest} more" if rest else "")
