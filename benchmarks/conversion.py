"""Compares an encoder's features in JAX with those in the programs that read the formats of `bt_jax.convert`.

    python -m benchmarks.conversion [--arch=resnet18,resnet50] [--encoder=RUN] [--out=FILE.md]

The input is a photograph: the central 224 x 224 pixels of scikit-learn's `china.jpg`. The encoder runs in JAX, and as a
torchvision, timm and transformers model in PyTorch, in float32 on the CPU. For each stage of the network, the table has
the largest difference, relative to the largest value of the stage. Then each program saves the weights again, and
bt_jax must read the original bytes from its file. Weights and running statistics are random, or those of a trained
encoder. The benchmark skips programs that are not installed.
"""

import argparse
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from sklearn.datasets import load_sample_image

from bt_jax import convert, models
from bt_jax.weights import export_formats, foreign_files, load, prefixes

SIZE = 224
STAGES = ("maxpool", "layer1", "layer2", "layer3", "layer4", "features")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drawn(arch: str) -> export_formats.Source:
    """An encoder with random weights and running statistics."""
    net = models.build(arch)
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return (generator.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        low, high = {"scale": (0.5, 1), "var": (0.5, 1.5)}.get(name, (-0.1, 0.1))
        return generator.uniform(low, high, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(net.init, jax.random.key(0)))
    build = {"arch": arch, "small_images": False, "width": 1, "channels": 3, "stem_padding": 1}
    return export_formats.Source({"build": build, "mean": MEAN, "std": STD}, variables, None, SIZE)


def photograph() -> np.ndarray:
    """The photograph, uint8 (1, 224, 224, 3)."""
    image = load_sample_image("china.jpg")
    top, left = ((side - SIZE) // 2 for side in image.shape[:2])
    return image[None, top : top + SIZE, left : left + SIZE]


def normalised(source: export_formats.Source) -> np.ndarray:
    return ((photograph() / 255 - np.array(source.model["mean"])) / np.array(source.model["std"])).astype(np.float32)


def hooked(model, layers: dict[str, object], images) -> dict[str, np.ndarray]:
    """The outputs of the named modules of a PyTorch model, in NHWC."""
    import torch

    outputs: dict[str, np.ndarray] = {}

    def record(name):
        def hook(module, inputs, output):
            output = getattr(output, "last_hidden_state", output)
            outputs[name] = output.detach().numpy().transpose(0, 2, 3, 1)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    with torch.no_grad():
        model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for handle in handles:
        handle.remove()
    outputs["features"] = outputs["layer4"].mean((1, 2))
    return outputs


def in_torchvision(source: export_formats.Source, folder: Path, images: np.ndarray):
    import torch
    import torchvision

    export_formats.torch(source, folder / "encoder.pth")
    model = getattr(torchvision.models, source.model["build"]["arch"])()
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(folder / "encoder.pth", weights_only=True))
    torch.save(model.state_dict(), folder / "back.pth")
    layers = {name: getattr(model, name) for name in STAGES[:-1]}
    return hooked(model, layers, images), folder / "back.pth"


def in_timm(source: export_formats.Source, folder: Path, images: np.ndarray):
    import timm
    from safetensors.torch import save_file

    export_formats.timm(source, folder / "timm")
    model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True)
    save_file(model.state_dict(), folder / "back_timm.safetensors")
    return hooked(model, {name: getattr(model, name) for name in STAGES[:-1]}, images), folder / "back_timm.safetensors"


def in_hugging_face(source: export_formats.Source, folder: Path, images: np.ndarray):
    import transformers

    export_formats.hugging_face(source, folder / "hf")
    model = transformers.ResNetModel.from_pretrained(folder / "hf")
    model.save_pretrained(folder / "back_hf")
    layers = {"maxpool": model.embedder} | {f"layer{i + 1}": stage for i, stage in enumerate(model.encoder.stages)}
    return hooked(model, layers, images), folder / "back_hf"


def in_stablehlo(source: export_formats.Source, folder: Path, images: np.ndarray):
    del images
    export_formats.stablehlo(source, folder / "encoder.stablehlo")
    program = jax.export.deserialize(bytearray((folder / "encoder.stablehlo").read_bytes()))
    return {"features": np.asarray(program.call(photograph()))}, None


def in_detectron2(source: export_formats.Source, folder: Path, images: np.ndarray):
    """Does not run detectron2: reads its arrays back under torchvision's keys."""
    export_formats.detectron2(source, folder / "encoder.pkl")
    arrays = pickle.loads((folder / "encoder.pkl").read_bytes())["model"]
    variables = convert.from_torch(prefixes.find(arrays)[0].arrays, arch=source.model["build"]["arch"])
    return stages(source._replace(variables=variables), images), None


def in_checkpoint(source: export_formats.Source, folder: Path, images: np.ndarray):
    export_formats.checkpoint_folder(source, folder / "ours")
    _, variables = load.load_encoder(folder / "ours")
    export_formats.safetensors(source._replace(variables=variables), folder / "ours.safetensors")
    return stages(source._replace(variables=variables), images), folder / "ours.safetensors"


FORMATS: dict[str, Callable] = {
    "checkpoint, safetensors": in_checkpoint,
    "torchvision": in_torchvision,
    "timm": in_timm,
    "transformers": in_hugging_face,
    "detectron2's keys": in_detectron2,
    "StableHLO": in_stablehlo,
}


def stages(source: export_formats.Source, images: np.ndarray) -> dict[str, np.ndarray]:
    run = jax.jit(lambda variables, x: source.net.stages(variables, x, train=False))
    return {name: np.asarray(value) for name, value in run(source.variables, images).items()}


def largest(array: np.ndarray) -> float:
    return float(np.abs(array).max())


def same_bytes(path: Path, source: export_formats.Source) -> bool:
    read, original = jax.tree.leaves(foreign_files.read(path).variables), jax.tree.leaves(source.variables)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(read, original, strict=True))


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18,resnet50")
    parser.add_argument("--encoder", help="a trained encoder, as for bt_jax.convert; it needs the 7x7 stem")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    sources = {arch: drawn(arch) for arch in options.arch.split(",")}
    if options.encoder:
        sources = {Path(options.encoder).name: export_formats.Source(*load.read(options.encoder), SIZE)}
    lines = [f"| encoder | form | {' | '.join(STAGES)} | back again |", f"|{'---|' * (len(STAGES) + 3)}"]
    wrong = 0
    for name, source in sources.items():
        images = normalised(source)
        expected = stages(source, images)
        for form, convert_and_run in FORMATS.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outputs, back = convert_and_run(source, Path(folder), images)
                except ImportError as error:
                    lines.append(f"| {name} | {form} | not installed: {error.name} |")
                    continue
                except convert.UserError as error:
                    lines.append(f"| {name} | {form} | {error.cause} |")
                    continue
                returned = "" if back is None else "same bytes" if same_bytes(back, source) else "OTHER BYTES"
            errors = {stage: largest(outputs[stage] - expected[stage]) / largest(expected[stage]) for stage in outputs}
            wrong += max(errors.values()) > 1e-4 or "OTHER" in returned
            cells = " | ".join(f"{errors[stage]:.0e}" if stage in errors else "" for stage in STAGES)
            lines.append(f"| {name} | {form} | {cells} | {returned} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
