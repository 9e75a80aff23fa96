"""Features of every image of a data set, with its id, file and label: written in order, in shards.

    python -m bt_jax.embed --encoder=runs/mine --folder=IMAGES --out=features                  # a folder of images
    python -m bt_jax.embed --encoder=runs/mine --data=cifar10 --splits=test --out=features     # a TFDS data set
    python -m bt_jax.embed --encoder=runs/mine/checkpoints/8000 --npz_in=mine.npz --out=features --format=parquet

Each image comes once, as the evaluation sees it: resized, cut at the centre, normalised as in training. What is written
for shard 0 of 5 of the split "train":

    --format=npy      train/features-00000-of-00005.npy   float32 (n, d)
                      train/ids-00000-of-00005.npy        int64 (n,): the image's place in the whole split
                      train/files-00000-of-00005.npy      str (n,): its path below --folder, else SPLIT/ID
                      train/labels-00000-of-00005.npy     int32 (n,), only where the split has labels
    --format=parquet  train/embeddings-00000-of-00005.parquet with the columns id, file, label and feature
    embed.json        encoder, data, dimension, counts, versions, command
    broken.txt        the images that cannot be read: split, id, file and reason, tab-separated

Images that cannot be read have no row: shards then are shorter, and `ids` says which images are there.

The same command goes on where it was stopped: shards that are whole are left as they are, damaged ones are made again;
to have another one made again, for example after images were restored, delete it. Further splits may be added later.
Where all images of a shard have one size, up to --canvas pixels, Pillow decodes them; TensorFlow streams all others.

Exit status 0: all is written; 2: it is not, with one line on stderr; 130: stopped by Ctrl-C.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from bt_jax import augment, checkpoint, run_folder, sharding
from bt_jax.data.prefetch import prefetch
from bt_jax.data.records import Broken, Source, Span, cores, progress, try_decode
from bt_jax.data.source import FolderSource, open_source
from bt_jax.errors import UserError, is_disk_full
from bt_jax.evals import features

SIZE, RESIZE, CANVAS = 224, 256, 512  # where no run says otherwise: the paper's evaluation, section 3.1


class Shard(NamedTuple):
    """Shard `number` of `total` of a split: the ids of `span`."""

    span: Span
    number: int
    total: int

    @property
    def stem(self) -> str:
        return f"{self.number:05d}-of-{self.total:05d}"


class Rows(NamedTuple):
    """What a shard holds: id int64 (n,), file list of n str, label int32 (n,) or None, feature float32 (n, d)."""

    id: np.ndarray
    file: list[str]
    label: np.ndarray | None
    feature: np.ndarray


class Index(NamedTuple):
    """What can be told of a stored shard without reading its features."""

    id: np.ndarray
    file: list[str]
    labelled: bool
    shape: tuple[int, ...]


class Job(NamedTuple):
    """All that does not change from shard to shard; `encode` takes a batch on the devices to features (b, d)."""

    source: Source
    mesh: Mesh
    encode: Callable[[dict], jax.Array]
    store: "Npy | Parquet"
    unreadable: "Unreadable"
    dimension: int
    channels: int
    batch_size: int
    canvas: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    try:
        run(parser().parse_args(arguments))
    except UserError as error:
        print(f"embed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("embed: stopped; the same command goes on after the last whole shard", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message[:1].upper() + message[1:], "See --help.")


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bt_jax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--encoder", metavar="PATH", required=True, help="a run folder (its newest checkpoint), or RUN/checkpoints/STEP"
    )
    add("--data", metavar="NAME", help='"patterns", or a TFDS name such as cifar10, cifar10:3.0.2, imagenet2012')
    add(
        "--data_dir",
        metavar="DIR",
        help="folder of TFDS data sets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    add("--folder", metavar="DIR", help="a folder of images instead of a named data set")
    add("--npz_in", metavar="FILE", help="a cache file of bt_jax.prepare instead of a named data set")
    add("--splits", metavar="A,B", help='the splits, whole or cut like "train[:1000]" (default: all)')
    add("--out", metavar="DIR", required=True, help="where to write; made if absent, continued if it holds the same")
    add("--format", choices=("npy", "parquet"), default="npy", help="of the shards (default: npy)")
    add("--shard", metavar="N", type=int, default=10_000, help="images in a shard (default: 10000)")
    add("--size", metavar="PIXELS", type=int, help=f"side of what the encoder sees (default: the run's, else {SIZE})")
    add(
        "--resize",
        metavar="PIXELS",
        type=int,
        help="shorter side before the cut at the centre; 0: --size (default: the run's, else 256, in proportion to"
        " --size)",
    )
    add(
        "--canvas",
        metavar="PIXELS",
        type=int,
        help=f"streamed images of a longer side are shrunk to this while decoding (default: the run's, else {CANVAS})",
    )
    add("--batch_size", metavar="N", type=int, default=256, help="rounded up to the number of devices (default: 256)")
    add(
        "--broken_limit",
        metavar="SHARE",
        type=float,
        default=0.01,
        help="share of a split's images that may be unreadable; 0: none (default: 0.01)",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Embeds whatever is missing of the splits. UserError for anything the user can mend."""
    for name in ("shard", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} is not positive", "Give at least 1")
    store = {"npy": Npy, "parquet": Parquet}[options.format]()
    model, view = checkpoint.read_model(options.encoder), view_sizes(options)
    source, spans = _open_data(options)
    net, variables = checkpoint.load_encoder(options.encoder)
    settings = {
        "weights": fingerprint(variables),
        "data": _data_name(options, source),
        "dimension": net.feature_dim,
        "mean": model["mean"],
        "std": model["std"],
        "format": options.format,
        "shard": options.shard,
    } | view
    out = Path(options.out).expanduser().absolute()
    record = open_out(out, options.encoder, settings, spans)
    mesh = sharding.make_mesh()
    recipe = augment.RECIPES["imagenet"](view["size"])  # of which the evaluation sees the normalisation alone
    recipe = dataclasses.replace(recipe, mean=tuple(model["mean"]), std=tuple(model["std"]))
    embed = features.make_embed(net, recipe, mesh, resize=view["resize"])
    unreadable = Unreadable(source, spans, limit=options.broken_limit, file=out / "broken.txt")
    job = Job(
        source,
        mesh,
        partial(embed, sharding.put_replicated(variables, mesh)),
        store,
        unreadable,
        net.feature_dim,
        len(model["mean"]),
        sharding.round_up(options.batch_size, mesh),
        view["canvas"],
    )
    for base, span in spans.items():
        shards = cut(span, options.shard)
        embed_split(job, out / base, shards)
        broken = len(unreadable.reasons[base])
        record["splits"][base] |= {"shards": len(shards), "rows": span.stop - span.start - broken, "unreadable": broken}
        _write_json(out / "embed.json", record)
    print(f"wrote {out}")


def embed_split(job: Job, folder: Path, shards: list[Shard]) -> None:
    """Makes the shards that are missing or damaged, in order, and prints one line about the split."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not finished(job, folder, shard)]
    for shard in missing:  # they are read again, and their images may have been restored
        job.unreadable.forget(shard.span)
    job.unreadable.write()
    (base, start, _), stop = shards[0].span, shards[-1].span.stop
    count = sum(shard.span.stop - shard.span.start for shard in missing)
    ticks = progress(range(count), f"embedding {base}", count)
    began = time.monotonic()
    with prefetch(_batches(job, missing), partial(_put, mesh=job.mesh)) as ahead:
        for shard, batches in groupby(ahead, key=lambda item: item[0]):
            rows = _rows(job, shard, batches, ticks)
            job.unreadable.write()  # before the shard: a row that is in neither means that the shard is damaged
            with _Explained(folder):
                job.store.write(folder, shard.stem, rows)
    deque(ticks, maxlen=0)
    unreadable, there = len(job.unreadable.reasons[base]), len(shards) - len(missing)
    print(
        f"{base}: {stop - start} images in {len(shards)} shards"
        + (f", {there} of which were there" if there else "")
        + f", {unreadable} unreadable"
        + (f", {count / (time.monotonic() - began):.0f} images/s" if count else "")
    )


def _put(item: tuple[Shard, dict], mesh: Mesh) -> tuple[Shard, dict, dict | None]:
    """Puts what the encoder needs of a batch on the devices; nothing of one without any image to see."""
    shard, batch = item
    inputs = {name: batch.pop(name) for name in ("image", "size") if name in batch}
    return shard, batch, sharding.put_global(inputs, mesh) if batch["mask"].any() else None


def _rows(job: Job, shard: Shard, batches: Iterable, ticks: Iterator) -> Rows:
    """Runs the encoder over the batches of one shard and drops their padding."""
    found = [np.zeros((0, job.dimension), np.float32)]
    ids, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for _, batch, inputs in batches:
        keep = batch["mask"]
        if inputs is not None:
            found.append(np.asarray(job.encode(inputs))[keep])
            ids.append(batch["id"][keep].astype(np.int64))
            labels.append(batch["label"][keep])
        deque(islice(ticks, int(keep.sum())), maxlen=0)
    ids, base = np.concatenate(ids), shard.span.base
    return Rows(
        ids,
        file_names(job.source, base, ids),
        np.concatenate(labels) if job.source.labelled(base) else None,
        np.concatenate(found),
    )


def cut(span: Span, size: int) -> list[Shard]:
    """The shards of a span, `size` images each but for the last."""
    starts = range(span.start, span.stop, size)
    return [
        Shard(Span(span.base, start, min(start + size, span.stop)), number, len(starts))
        for number, start in enumerate(starts)
    ]


def finished(job: Job, folder: Path, shard: Shard) -> bool:
    """Whether a shard is there and whole, and has the images that the data set has now."""
    try:
        index = job.store.index(folder, shard.stem)
    except Exception:  # whatever NumPy and Arrow raise on a missing, short or damaged file
        return False
    (base, start, stop), broken = shard.span, job.unreadable.reasons[shard.span.base]
    ids = [number for number in range(start, stop) if number not in broken]
    return (
        index.id.tolist() == ids
        and index.shape == (len(ids), job.dimension)
        and index.labelled == job.source.labelled(base)
        and index.file == [job.store.text(name) for name in file_names(job.source, base, ids)]
    )


def file_names(source: Source, base: str, ids: Iterable[int]) -> list[str]:
    """Paths below the root of a folder of images; SPLIT/ID where images are not files."""
    if isinstance(source, FolderSource):
        return [source.path(base, int(number)).relative_to(source.root).as_posix() for number in ids]
    return [f"{base}/{number}" for number in ids]


# What is asked for ----------------------------------------------------------------------------------------------------


def _open_data(options: argparse.Namespace) -> tuple[Source, dict[str, Span]]:
    """The source, and the span of each split by its name."""
    if sum(given is not None for given in (options.data, options.npz_in, options.folder)) != 1:
        raise UserError("One data set is needed", "Give one of --data=NAME, --folder=DIR and --npz_in=FILE.")
    source = open_source(options.data, data_dir=options.data_dir, npz=options.npz_in, folder=options.folder)
    asked = [source.span(split) for split in (options.splits.split(",") if options.splits else source.splits)]
    spans = {span.base: span for span in asked}
    if len(spans) < len(asked):
        raise UserError(f"--splits={options.splits} names a split twice", "Give each its own --out.")
    return source, spans


def _data_name(options: argparse.Namespace, source: Source) -> str:
    path = options.folder or options.npz_in
    return str(Path(path).expanduser().absolute()) if path else source.name


def view_sizes(options: argparse.Namespace) -> dict[str, int]:
    """{"size", "resize", "canvas"}: as given, else of the run that the encoder is from, else ImageNet's.

    `resize` keeps its proportion to a `size` that is given alone; 0 means `size`.
    """
    config = _run_config(checkpoint.step_folder(options.encoder))
    views, evals = config.get("views", {}), config.get("evals", {})
    size, resize = evals.get("size") or views.get("size"), evals.get("resize", 0)
    if not size:
        size, resize = SIZE, RESIZE
    canvas = options.canvas if options.canvas is not None else config.get("data", {}).get("canvas", CANVAS)
    if options.size is not None:
        size, resize = options.size, round(resize * options.size / size)
    resize = options.resize if options.resize is not None else resize
    if min(size, canvas) < 1 or resize and resize < size:
        raise UserError(
            f"--size={size}, --resize={resize} and --canvas={canvas} do not go together",
            "Give positive sizes, and a resize that is 0 or at least the size.",
        )
    return {"size": size, "resize": resize, "canvas": canvas}


def _run_config(step_folder: Path) -> dict[str, Any]:
    """RUN/config.json of RUN/checkpoints/STEP; {} for a checkpoint that has left its run."""
    try:
        return json.loads((step_folder.parents[1] / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def fingerprint(variables: dict) -> str:
    """16 hexadecimal digits of all weights and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def open_out(out: Path, encoder: str, settings: dict[str, Any], spans: dict[str, Span]) -> dict[str, Any]:
    """Makes the folder, or accepts one that was begun with the same settings; writes embed.json.

    Returns:
      What embed.json holds; splits that it had before are kept.

    Raises:
      UserError: other settings, which are named; other images of a split; files of something else.
    """
    file = out / "embed.json"
    settings |= {"encoder": str(checkpoint.step_folder(encoder))}
    splits = {base: {"start": span.start, "stop": span.stop} for base, span in spans.items()}
    cure = "Give another --out, or the options of before to go on."
    with _Explained(out):
        out.mkdir(parents=True, exist_ok=True)
        if file.exists():
            old = _read_json(file)
            different = _differences(old, settings, splits)
            if different:
                raise UserError(f"{out} was begun with other options ({'; '.join(different)})", cure)
            splits = old["splits"] | {base: old["splits"].get(base, {}) | span for base, span in splits.items()}
        elif any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no embed.json", "Give another --out.")
        record = {"settings": settings, "splits": splits, "environment": run_folder.environment()}
        _write_json(file, record)
    return record


def _differences(old: dict, settings: dict, splits: dict) -> list[str]:
    """What differs, as "size: 224 -> 32". The encoder may have moved, so its path is shown with its weights only."""
    before, lines = old["settings"], []
    for key in sorted(settings.keys() - {"encoder"}):
        if before.get(key) != settings[key]:
            shown = ("weights", "encoder") if key == "weights" else (key,)
            lines += [f"{name}: {before.get(name)} -> {settings[name]}" for name in shown]
    for base in splits.keys() & old["splits"].keys():
        spans = [f"[{split['start']}:{split['stop']}]" for split in (old["splits"][base], splits[base])]
        if spans[0] != spans[1]:
            lines.append(f"images of {base}: {spans[0]} -> {spans[1]}")
    return lines


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        return {"settings": dict(content["settings"]), "splits": dict(content["splits"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged", "Give another --out.") from None


def _write_json(file: Path, content: dict[str, Any]) -> None:
    _replace(file, lambda stream: stream.write((json.dumps(content, indent=2) + "\n").encode()))


# Images ---------------------------------------------------------------------------------------------------------------


class Unreadable(Broken):
    """Images without a row. Counted over the whole of what is embedded of a split, not of the shard that is read.

    Args:
      spans: what is embedded, by split.
      limit: share of each that may be unreadable; 0: the first one is an error.
      file: they stand in this file, a line each: split, id, file, reason. What it holds already counts too.

    Attributes:
      reasons: {split: {id: (file, reason)}}.
    """

    def __init__(self, source: Source, spans: dict[str, Span], *, limit: float, file: Path):
        super().__init__(source, limit=limit)
        self._source, self._spans, self._limit, self._file = source, spans, limit, file
        self.reasons: dict[str, dict[int, tuple[str, str]]] = {base: {} for base in spans}
        for line in file.read_text("utf-8", "surrogateescape").split("\n") if file.exists() else []:
            base, number, name, reason = (line.split("\t", 3) + [""] * 3)[:4]
            if number.isdigit():
                self.reasons.setdefault(base, {})[int(number)] = name, reason

    def known(self, span, ids):
        return np.isin(ids, list(self.reasons[span.base]))

    def add(self, span, number, reason):
        found, whole = self.reasons[span.base], self._spans[span.base]
        if number in found:
            return
        reason = " ".join(str(reason).partition("\n")[0].split("<_io")[0].split())
        found[number] = file_names(self._source, span.base, [number])[0], reason
        line = f"{self._source.where(span.base, number)}: the image cannot be read ({reason})"
        if len(found) > self._limit * (whole.stop - whole.start):
            self.write()
            raise UserError(
                f"{line}, as {len(found)} of the {whole.stop - whole.start} images of split {span.base!r}",
                "Restore it from its origin, or allow more with --broken_limit",
            )
        if len(found) <= self.NAMED:
            rest = "; further ones are only listed" if len(found) == self.NAMED else ""
            print(f"WARNING: {line}; it gets no row{rest}", file=sys.stderr)

    def forget(self, span: Span) -> None:
        """Those of a shard that is made again."""
        for number in [number for number in self.reasons[span.base] if span.start <= number < span.stop]:
            del self.reasons[span.base][number]

    def write(self) -> None:
        """Brings the file up to date; there is none without an unreadable image."""
        lines = [
            f"{base}\t{number}\t{name}\t{reason}\n"
            for base, found in self.reasons.items()
            for number, (name, reason) in sorted(found.items())
        ]
        if lines:
            with _Explained(self._file):
                _replace(self._file, lambda stream: stream.write("".join(lines).encode("utf-8", "surrogateescape")))
        else:
            self._file.unlink(missing_ok=True)


def _batches(job: Job, shards: list[Shard]) -> Iterator[tuple[Shard, dict[str, np.ndarray]]]:
    """(shard, {"image", "mask", "id", "label", of streamed images also "size"}): every image of the shards in order,
    filled up to the batch size at the end of each."""
    for shard in shards:
        size, differ = one_size(job.source, shard.span)
        if size and max(size) <= job.canvas:
            batches = array_batches(job, shard.span, size)
        elif importlib.util.find_spec("tensorflow"):
            from bt_jax.data import pipeline  # imported here: it needs TensorFlow

            batches = pipeline.eval_batches(
                job.source,
                _slice(shard.span),
                batch_size=job.batch_size,
                canvas=job.canvas,
                broken=job.unreadable,
                channels=job.channels,
            )
        else:
            which = differ or f"are {size[1]}x{size[0]}, larger than the canvas of {job.canvas}"
            raise UserError(
                f"The images of {job.source.name}, split {shard.span.base!r}, {which}, and TensorFlow is not installed",
                "Run pip install -e '.[tfds]'." if differ else f"Give --canvas={max(size)}.",
            )
        for batch in batches:
            yield shard, batch


def _slice(span: Span) -> str:
    return f"{span.base}[{span.start}:{span.stop}]"


def one_size(source: Source, span: Span) -> tuple[tuple[int, int] | None, str]:
    """((height, width), "") of all readable images of a span, by their headers; (None, two that differ) otherwise."""
    size, first_id = None, 0
    # The first few tell most data sets of photographs apart, before the whole span is read.
    few = min(span.start + 16, span.stop)
    for part in (span._replace(stop=few), span._replace(start=few)):
        if part.start == part.stop:
            continue
        for number, (data, _) in enumerate(source.encoded(_slice(part)), part.start):
            found = _header(data)
            if size is None:
                size, first_id = found, number
            if found not in (None, size):
                h, w = found
                return None, f"differ in size (id {first_id} is {size[1]}x{size[0]}, id {number} is {w}x{h})"
    return size or (1, 1), ""


def _header(data: bytes | UserError) -> tuple[int, int] | None:
    """(height, width) of an encoded image, or None where that cannot be told."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, its own ...
        return None


def array_batches(job: Job, span: Span, size: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
    """As `pipeline.eval_batches`, without canvas and "size", for images of one size (height, width)."""
    records, start = job.source.encoded(_slice(span)), span.start
    decoder = partial(try_decode, channels=job.channels)
    with ThreadPoolExecutor(cores()) as pool:
        while chunk := list(islice(records, job.batch_size)):
            image = np.zeros((job.batch_size, *size, job.channels), np.uint8)
            mask = np.arange(job.batch_size) < len(chunk)
            label = np.full(job.batch_size, -1, np.int32)
            for row, found in enumerate(pool.map(decoder, [data for data, _ in chunk])):
                if not isinstance(found, Exception) and found.shape[:2] != size:
                    found = ValueError("its pixels are not as many as its header says")
                if isinstance(found, Exception):
                    job.unreadable.add(span, start + row, getattr(found, "cause", found))
                    mask[row] = False
                    continue
                image[row] = found
                label[row] = -1 if chunk[row][1] is None else chunk[row][1]
            yield {"image": image, "mask": mask, "label": label, "id": start + np.arange(job.batch_size)}
            start += len(chunk)


# Files ----------------------------------------------------------------------------------------------------------------


class Npy:
    """One .npy file for each column, the features last: where they are, the others are too."""

    def write(self, folder: Path, stem: str, rows: Rows) -> None:
        columns = {"ids": rows.id, "files": np.array(rows.file, "U"), "labels": rows.label, "features": rows.feature}
        for name, column in columns.items():
            if column is not None:
                _replace(self._path(folder, name, stem), partial(np.save, arr=column, allow_pickle=False))

    def index(self, folder: Path, stem: str) -> Index:
        """Raises whatever NumPy does for a file that is missing, short or something else."""
        ids, files, found = (np.load(self._path(folder, name, stem), "r") for name in ("ids", "files", "features"))
        labels = self._path(folder, "labels", stem)
        labelled = labels.exists()
        if (
            found.dtype != np.float32
            or files.shape != ids.shape
            or labelled
            and np.load(labels, "r").shape != ids.shape
        ):
            raise ValueError("columns do not fit")
        return Index(ids, files.tolist(), labelled, found.shape)

    def text(self, name: str) -> str:
        return name

    @staticmethod
    def _path(folder: Path, name: str, stem: str) -> Path:
        return folder / f"{name}-{stem}.npy"


class Parquet:
    """One Parquet file. A file name that is not UTF-8 has its odd bytes as \\udc80 to \\udcff, written out."""

    def __init__(self):
        if importlib.util.find_spec("pyarrow") is None:
            raise UserError("--format=parquet needs pyarrow", "Run pip install -e '.[parquet]'.")

    def write(self, folder: Path, stem: str, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(rows.feature.reshape(-1))
        columns = {"id": pa.array(rows.id), "file": pa.array([self.text(name) for name in rows.file], pa.string())}
        if rows.label is not None:
            columns["label"] = pa.array(rows.label)
        columns["feature"] = pa.FixedSizeListArray.from_arrays(flat, rows.feature.shape[1])
        _replace(self._path(folder, stem), lambda stream: pq.write_table(pa.table(columns), stream))

    def index(self, folder: Path, stem: str) -> Index:
        """Raises whatever Arrow does for a file that is missing, short or something else."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path(folder, stem)) as file:
            kind, labelled = file.schema_arrow.field("feature").type, "label" in file.schema_arrow.names
            table = file.read(["id", "file"])
        return Index(table["id"].to_numpy(), table["file"].to_pylist(), labelled, (table.num_rows, kind.list_size))

    def text(self, name: str) -> str:
        return name.encode("utf-8", "backslashreplace").decode()

    @staticmethod
    def _path(folder: Path, stem: str) -> Path:
        return folder / f"embeddings-{stem}.parquet"


def _replace(path: Path, write: Callable) -> None:
    """Writes a file through a stream; it appears whole or not at all."""
    partial_path = path.with_name(f".{path.name}.tmp")
    try:
        with open(partial_path, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


class _Explained:
    """Turns what the disk says while something is written into one line."""

    def __init__(self, what: Path):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            reason = "the disk is full" if is_disk_full(error) else error.strerror or str(error)
            cure = "Choose a folder with room that you may write to; the same command goes on."
            raise UserError(f"Cannot write {self._what}: {reason}", cure) from None


if __name__ == "__main__":
    sys.exit(main())
