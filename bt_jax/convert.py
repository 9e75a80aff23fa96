"""Converts weights of other programs to bt_jax checkpoints, and encoders of bt_jax to formats of other programs.

    bt-jax convert resnet50.pth --to=checkpoint --out=encoders/paper      # initial weights, or to evaluate
    bt-jax convert runs/mine --to=timm --out=mine_timm
    bt-jax convert runs/mine/checkpoints/8000 --to=safetensors --out=mine.safetensors

SOURCE is a run folder (its newest intact checkpoint), RUN/checkpoints/STEP, or weights of a ResNet-18 to 152: the
reference's resnet50.pth and checkpoint.pth, VICReg's, torchvision's, timm's (.pth or .safetensors), a Hugging Face
folder. The keys may have any prefix ("model.", "_orig_mod.", "module.encoder_q."), if there is only one ResNet. FORMS:

    checkpoint    a folder for bt_jax.load_encoder, --config.encoder and --config.init_from; other programs read it with
                  Orbax
    torchvision   torchvision's state dict                        one file, .safetensors (also: --to=safetensors)
    torch         the same, .pth                                  one file, needs PyTorch
    timm          timm.create_model("local-dir:OUT")              a folder
    huggingface   transformers.ResNetModel.from_pretrained        a folder
    detectron2    MODEL.WEIGHTS                                   one file, .pkl
    stablehlo     the program with its weights, for jax.export    one file

Each form comes with a model card: README.md in a folder, mine.pth.md beside the file mine.pth. The card has the code
that builds the network in the other program, for any width and stem. Reading a file never executes its content. Exit
status 0: written; 2: an error, with one line on stderr; 130: stopped by Ctrl-C.

In Python: from_torch, to_torch, projector_from_torch, projector_to_torch on dicts of arrays.
"""

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from bt_jax import storage
from bt_jax.cli import jax_settings, tool
from bt_jax.messages import UserError, is_disk_full, line
from bt_jax.run_folder import checkpoint_paths
from bt_jax.terminal import interrupts
from bt_jax.weights.state_dicts import from_torch, projector_from_torch, projector_to_torch, to_torch

__all__ = ["from_torch", "main", "projector_from_torch", "projector_to_torch", "to_torch"]

NAME_LENGTH = 200  # of the 255 that a file system allows: temporary names have a prefix and a suffix


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    logging.set_verbosity(logging.FATAL)  # Orbax's threads log tracebacks of errors that are reported in one line here
    return tool.run(_parser(), run, arguments)


def run(options: argparse.Namespace) -> None:
    """Converts. If that fails, raises UserError and leaves no files behind."""
    from bt_jax import sharding
    from bt_jax.weights import export_formats, model_card

    jax_settings.settle()
    sharding.all_devices()
    form = export_formats.FORMS[options.to]
    out = _named(options.out, form.suffix, {known.suffix for known in export_formats.FORMS.values()})
    beside = out.with_name(f"{out.name}.md") if form.suffix else None  # mine.pth and mine.pkl each have one
    if options.to == "checkpoint":
        checkpoint_paths.check(out)
    for path in filter(None, (out, beside)):
        if os.path.lexists(path):
            raise UserError(f"{path} exists", "Give another --out, or delete it.")
    source, where = _source(options)
    new_folders = [path for path in out.parents if not path.exists()]
    # Both are written to a temporary folder first, under their final names, so that no partial file is visible.
    made = out.parent / f".convert-{secrets.token_hex(4)}"
    written = made / beside.name if beside else made / out.name / "README.md"
    try:
        with interrupts.tidied(lambda: _tidy(made, new_folders)):
            made.mkdir(parents=True)
            form.write(source, made / out.name)
            model_card.write(
                written, source, where=where, form=options.to, out=out, licence=" ".join(options.licence.split())
            )
            (made / out.name).rename(out)
            if beside:
                written.rename(beside)
    except _unwritable() as error:
        fix = "Free some space, or give another --out."
        raise UserError(f"{out} cannot be written: {_reason(error)}", fix) from error
    also = "" if source.projector is None or options.to != "checkpoint" else " and its projector"
    card_path = beside or out / "README.md"
    print(f"{source.model['build']['arch']}{also} -> {out} ({options.to}); card: {card_path}")


def _tidy(made: Path, new_folders: list[Path]) -> None:
    """Removes the temporary folder, and each new folder that is empty, from the innermost on."""
    storage.remove_folder(made)
    for folder in new_folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _named(out: str, suffix: str, suffixes: set[str]) -> Path:
    """The path to write, with the form's suffix."""
    path = Path(out)
    if path.name in ("", "..") or len(path.name) > NAME_LENGTH:
        raise UserError(f"--out={out[:80]} is not a name for a file or folder", "Give a name, such as --out=mine.")
    if path.suffix in suffixes - {suffix, ""}:
        kind = f"a file that ends in {suffix}" if suffix else "a folder"
        raise UserError(f"--out={out} ends in {path.suffix}, but this form is {kind}", "Give another --out or --to.")
    path = storage.local_path(out)
    return path if path.suffix == suffix or not suffix else path.with_name(path.name + suffix)


def _unwritable() -> tuple[type[Exception], ...]:
    """The exception types of a full or read-only disk in the libraries; PyTorch and Orbax have no special type."""
    from safetensors import SafetensorError

    return OSError, SafetensorError, RuntimeError, ValueError


def _reason(error: Exception) -> str:
    if is_disk_full(error):
        return "the disk is full"
    return getattr(error, "strerror", None) or line(error, 120)


def _source(options: argparse.Namespace):
    """The weights to convert, and the file or step folder that they are from."""
    from bt_jax.run_folder import opening
    from bt_jax.weights import foreign_files, load
    from bt_jax.weights.export_formats import Source

    place = load.weights_path(options.source)  # once, because a run in progress may save another step meanwhile
    if foreign_files.is_foreign(place):
        encoder = load.finite(foreign_files.read(place, arch=options.arch or ""), place)
        known = load.evaluation_size(encoder.model)
    else:
        encoder = load.read(place, projector=True)
        fix = "" if options.size else "Restore a copy of it, or give the size of the images: --size=PIXELS."
        known = load.evaluation_size(opening.read_run_json(place, "config.json", fix=fix))
        known = known if known[0] else load.evaluation_size(encoder.model)
    size, resize = (options.size, 0) if options.size else known
    evals = {"evals": {"size": size, "resize": resize}} if size else {}  # `evaluate` and `embed` read it back
    return Source(*encoder._replace(model=encoder.model | evals), size or load.SIZE), place


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size of images, 1 to 4096")
    return int(text)


def _parser() -> tool.Parser:
    from bt_jax.models import ARCHITECTURES
    from bt_jax.weights.export_formats import FORMS
    from bt_jax.weights.load import SIZE

    parser = tool.Parser("convert", __doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a run folder, one of its checkpoints, or weights of another program")
    add("--to", metavar="FORM", choices=FORMS, required=True, help=", ".join(FORMS))
    add("--out", metavar="PATH", required=True, help="file or folder to write; must not exist")
    add("--arch", choices=ARCHITECTURES, help="architecture of foreign weights (default: from their names)")
    add(
        "--size",
        metavar="PIXELS",
        type=_pixels,
        help=f"side of the images (default: that of the run or of the export, else {SIZE})",
    )
    add("--licence", default="", help="licence of the weights for the model card, such as mit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
