"""Measures pairs of views per second and CPU core: bt_jax's host path, the reference's recipe, and plain decoding.

    TFDS_DATA_DIR=DIR python -m benchmarks.input [--cores=1] [--passes=4] [--memory=N] [--listing=N] [--json=FILE]

The images are ImageNet JPEGs in TFDS form. The process is pinned to `--cores` cores before TensorFlow starts. Each path
runs `--passes` times over all images, in turns; the table has the medians:

    decode            Pillow, JPEG to RGB: every path needs it
    reference         decode, then both views on the host: the recipe of the reference's main.py, written with Pillow
    decode + crop     decode, then two bicubic random resized crops on the host; the device would do the rest
    host path         bt_jax.data.pipeline: decode into a canvas; the device does the rest
    host to device    the same, and the prefetcher puts the batches on the device

--memory=N then streams N images and prints the memory of the process ten times. --listing=N is a separate benchmark: it
makes a folder of N empty files, 1,000 in each sub-folder, and times the opening as a data set: first from the disk,
then from the cached list.
"""

import argparse
import io
import json
import math
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

SIZE, CANVAS, BATCH = 224, 512, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--listing", type=int, default=0, metavar="N")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.listing:
        list_folder(args.listing)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])

    from bt_jax.data.sources.open_source import open_source

    source = open_source("imagenet2012")
    encoded = [data for data, _ in source.encoded("train")]
    on_host = {
        "decode": decode,
        "reference": reference,
        "decode + crop": lambda data: two_crops(decode(data)),
    }
    rates = {name: [] for name in (*on_host, "host path", "host to device")}
    for _ in range(args.passes):
        for name, path in on_host.items():
            rates[name].append(measure(path, encoded))  # one thread, so one core
        for name, device in (("host path", False), ("host to device", True)):
            rates[name].append(stream(source, 2 * len(encoded), device) / args.cores)
    per_core = {name: statistics.median(passes) for name, passes in rates.items()}
    report(per_core, len(encoded), args)
    if args.memory:
        watch_memory(source, args.memory)


def report(per_core: dict[str, float], images: int, args) -> None:
    print(f"{images} images, {args.cores} cores, median of {args.passes} passes\n")
    print("| path | pairs/s per core | x reference | share of decoding |\n|---|---|---|---|")
    for name, rate in per_core.items():
        print(f"| {name} | {rate:.0f} | {rate / per_core['reference']:.1f} | {rate / per_core['decode']:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\npeak memory {peak:.2f} GB")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"cores": args.cores, "pairs_per_second_per_core": per_core, "peak_gb": peak}, file, indent=2)


def watch_memory(source, images: int) -> None:
    from bt_jax.data.pipeline import train_batches

    batches = train_batches(source, "train", batch_size=BATCH, canvas=CANVAS, seed=0)
    for step in range(1, images // BATCH + 1):
        next(batches)
        if step % max(images // BATCH // 10, 1) == 0:
            with open("/proc/self/statm") as file:
                resident = int(file.read().split()[1]) * resource.getpagesize()
            print(f"{step * BATCH} images: {resident / 1e9:.3f} GB", flush=True)


def list_folder(files: int) -> None:
    from bt_jax.data.sources import folder_listing, image_folder

    with tempfile.TemporaryDirectory() as root:
        images = Path(root, "images")
        for number in range(files):
            if number % 1000 == 0:
                below = images / f"{number // 1000:04d}"
                below.mkdir(parents=True)
            (below / f"{number:07d}.png").touch()
        time.sleep(2 * folder_listing.SETTLED / 1e9)  # a list of a folder that has just changed is not cached
        for origin in ("from the disk", "from the cached list"):
            started = time.perf_counter()
            source = image_folder.FolderSource(images, cache=Path(root, "cache"))
            print(f"{sum(source.splits.values())} files {origin}: {time.perf_counter() - started:.1f} s", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def measure(path, encoded: list[bytes]) -> float:
    """Images per second."""
    started = time.perf_counter()
    for data in encoded:
        path(data)
    return len(encoded) / (time.perf_counter() - started)


def stream(source, images: int, device: bool) -> float:
    """Images per second on all cores. The first batches build and fill the pipeline and do not count."""
    from bt_jax.data.pipeline import train_batches

    batches = train_batches(source, "train", batch_size=BATCH, canvas=CANVAS, seed=0)
    if device:
        import jax

        from bt_jax.data.prefetch import Prefetch

        batches = Prefetch(batches, jax.device_put)
    for _ in range(4):
        next(batches)
    started = time.perf_counter()
    for _ in range(images // BATCH):
        next(batches)
    seconds = time.perf_counter() - started
    batches.close()
    return images // BATCH * BATCH / seconds


# The reference's recipe, main.py, class Transform, with Pillow --------------------------------------------------------


def decode(data: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def two_crops(image):
    return resized_crop(image), resized_crop(image)


def reference(data: bytes):
    image = decode(data)
    return view(image, blur=1.0, solarize=0.0), view(image, blur=0.1, solarize=0.2)


def view(image, *, blur: float, solarize: float):
    import numpy as np
    from PIL import Image, ImageFilter, ImageOps

    image = resized_crop(image)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        image = jitter(image)
    if random.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if random.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    if random.random() < solarize:
        image = ImageOps.solarize(image)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(x, np.float32)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / std


def resized_crop(image):
    from PIL import Image

    w, h = image.size
    for _ in range(10):
        area = w * h * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < cw <= w and 0 < ch <= h:
            break
    else:
        cw = ch = min(w, h)
    x, y = random.randint(0, w - cw), random.randint(0, h - ch)
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(x, y, x + cw, y + ch))


def jitter(image):
    from PIL import ImageEnhance

    def hue(image):
        import numpy as np
        from PIL import Image

        h, s, v = image.convert("HSV").split()
        shift = np.uint8(round(random.uniform(-0.1, 0.1) * 255) % 256)
        return Image.merge("HSV", (Image.fromarray(np.asarray(h) + shift), s, v)).convert("RGB")

    def enhance(kind, strength):
        return lambda image: kind(image).enhance(random.uniform(1 - strength, 1 + strength))

    steps = [
        enhance(ImageEnhance.Brightness, 0.4),
        enhance(ImageEnhance.Contrast, 0.4),
        enhance(ImageEnhance.Color, 0.2),
        hue,
    ]
    random.shuffle(steps)
    for step in steps:
        image = step(image)
    return image


if __name__ == "__main__":
    sys.exit(main())
