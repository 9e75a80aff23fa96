"""Weights from other programs' forms to ours, and encoders of ours to theirs.

    python -m bt_jax.convert resnet50.pth --to=checkpoint --out=encoders/paper      # to start from, or to evaluate
    python -m bt_jax.convert runs/mine --to=timm --out=mine_timm
    python -m bt_jax.convert runs/mine/checkpoints/8000 --to=safetensors --out=mine.safetensors

SOURCE is a run folder (its newest whole checkpoint), RUN/checkpoints/STEP, or weights of a ResNet-18 to 152: the
reference's resnet50.pth and checkpoint.pth, VICReg's, torchvision's, timm's (.pth or .safetensors), a Hugging Face
folder. FORMS:

    checkpoint    a folder that bt_jax.load_encoder, --config.encoder and --config.init_from take; Orbax reads it alone
    safetensors   torchvision's state dict                        one file
    torch         the same, .pth                                  one file, takes PyTorch
    timm          timm.create_model("local-dir:OUT")              a folder
    huggingface   transformers.ResNetModel.from_pretrained        a folder
    detectron2    MODEL.WEIGHTS                                   one file, .pkl
    stablehlo     the program with its weights, for jax.export    one file

A model card is written with each: README.md in a folder, NAME.md beside a file. Files are read without executing what
is in them. Exit status 0: written; 2: not, with one line on stderr.

In Python: from_torch, to_torch, projector_from_torch, projector_to_torch on dicts of arrays.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bt_jax.conversion.state_dicts import from_torch, projector_from_torch, projector_to_torch, to_torch
from bt_jax.errors import UserError, is_disk_full

__all__ = ["from_torch", "main", "projector_from_torch", "projector_to_torch", "to_torch"]

SIZE = 224  # pixels, where the source does not say: ImageNet's


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    try:
        run(_parser().parse_args(arguments))
    except UserError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Converts; raises UserError and leaves nothing behind where that fails."""
    from bt_jax.conversion import card, targets

    form, out = targets.FORMS[options.to], Path(options.out).expanduser()
    if form.suffix and out.suffix != form.suffix:
        out = out.with_name(out.name + form.suffix)
    if out.exists():
        raise UserError(f"{out} exists", "Give another --out, or delete it.")
    source = _source(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        form.write(source, out)
        beside = out.with_suffix(".md") if form.suffix else out / "README.md"
        card.write(beside, source, given=options.source, form=options.to, out=out, licence=options.licence)
    except BaseException as error:
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
        if isinstance(error, OSError):
            full = is_disk_full(error)
            raise UserError(
                f"{out} cannot be written: {'the disk is full' if full else error.strerror or error}",
                "Free some space." if full else "Give another --out.",
            ) from error
        raise
    also = "" if source.projector is None or options.to != "checkpoint" else " and its projector"
    print(f"{source.model['build']['arch']}{also} -> {out} ({options.to}); card: {beside}")


def _source(options: argparse.Namespace):
    from bt_jax import checkpoint
    from bt_jax.conversion import files
    from bt_jax.conversion.targets import Source

    if files.is_foreign(options.source):
        return Source(*files.read(options.source, arch=options.arch or ""), options.size or SIZE)
    model = checkpoint.read_model(options.source)
    _, variables = checkpoint.load_encoder(options.source)
    size = options.size or _evaluated_size(checkpoint.step_folder(options.source)) or SIZE
    return Source(model, variables, checkpoint.load_projector(options.source), size)


def _evaluated_size(step_folder: Path) -> int:
    """Pixels of the views that the run evaluates, 0 where there is no run."""
    try:
        config = json.loads((step_folder.parents[1] / "config.json").read_text())
        return config["evals"]["size"] or config["views"]["size"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message[:1].upper() + message[1:], "See --help.")


def _parser() -> argparse.ArgumentParser:
    from bt_jax.conversion.targets import FORMS
    from bt_jax.models import ARCHITECTURES

    parser = _Parser(
        prog="python -m bt_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a run folder, one of its checkpoints, or weights of another program")
    add("--to", metavar="FORM", choices=FORMS, required=True, help=", ".join(FORMS))
    add("--out", metavar="PATH", required=True, help="what to write; must not exist")
    add("--arch", choices=ARCHITECTURES, help="of foreign weights (default: what their names fit)")
    add("--size", metavar="PIXELS", type=int, help=f"side of the images (default: the run's, else {SIZE})")
    add("--licence", default="", help="of the weights, for the model card, e.g. cc-by-nc-4.0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
