"""The code of a model card: it builds the encoder in another program, loads the exported weights and computes features.

CODE has a function per format, (Source, path) -> lines. In PyTorch, `images` are (n, channels, size, size). The tests
execute these lines.
"""

from bt_jax.models.resnet import stem_channels
from bt_jax.weights.export_formats import Source, is_plain

# For a network whose width is not 1: every layer but the first gets `base` channels for 64, 2 `base` for 128, ....
NARROWER = """\
for name, layer in list(model.named_modules()):  # {base} channels instead of 64, {twice} instead of 128, ...
    if isinstance(layer, torch.nn.BatchNorm2d):
        model.set_submodule(name, torch.nn.BatchNorm2d(layer.num_features * {base} // 64))
    elif isinstance(layer, torch.nn.Conv2d) and name != "conv1":
        sizes = [count * {base} // 64 for count in (layer.in_channels, layer.out_channels)]
        options = {{"stride": layer.stride, "padding": layer.padding, "bias": False}}
        model.set_submodule(name, torch.nn.Conv2d(*sizes, layer.kernel_size, **options))"""


def checkpoint(source: Source, path: str) -> list[str]:
    return [
        f'net, variables = bt_jax.load_encoder("{path}")  # images normalised by mean and std',
        "features = net.apply(variables, images, train=False)",
    ]


def safetensors(source: Source, path: str) -> list[str]:
    imports = ["import safetensors.torch", "import torch", "import torchvision"]
    return [*imports, *_torchvision(source, f'safetensors.torch.load_file("{path}")')]


def torch(source: Source, path: str) -> list[str]:
    return ["import torch", "import torchvision", *_torchvision(source, f'torch.load("{path}", weights_only=True)')]


def timm(source: Source, path: str) -> list[str]:
    if is_plain(source.model["build"]):
        model = f'model = timm.create_model("local-dir:{path}", pretrained=True).eval()'
        return ["import timm", "import torch", "", model, _images(source), "features = model(images)"]
    build = source.model["build"]
    return [
        "import safetensors.torch",
        "import timm",
        "import torch",
        "",
        f'model = timm.create_model("{build["arch"]}", num_classes=0)  # timm has no name for this network',
        *_changes(source),
        f"model.num_features = {source.net.feature_dim}",
        *_loaded(source, f'safetensors.torch.load_file("{path}/model.safetensors")'),
        "features = model(images)",
    ]


def hugging_face(source: Source, path: str) -> list[str]:
    build = source.model["build"]
    features = "features = model(images).pooler_output.flatten(1)"
    if not build["small_images"]:
        model = f'model = transformers.ResNetModel.from_pretrained("{path}").eval()'
        return ["import torch", "import transformers", "", model, _images(source), features]
    return [
        "import safetensors.torch",
        "import torch",
        "import transformers",
        "",
        f'model = transformers.ResNetModel(transformers.ResNetConfig.from_pretrained("{path}"))',
        f"model.embedder.embedder.convolution = {_first_convolution(build)}",
        "model.embedder.pooler = torch.nn.Identity()",
        *_loaded(source, f'safetensors.torch.load_file("{path}/model.safetensors")'),
        features,
    ]


def detectron2(source: Source, path: str) -> list[str]:
    mean, std = ([round(255 * value, 3) for value in source.model[name]] for name in ("mean", "std"))
    depth = source.model["build"]["arch"].removeprefix("resnet")
    return [
        "MODEL:",
        f"  WEIGHTS: {path}",
        f"  PIXEL_MEAN: {mean}",
        f"  PIXEL_STD: {std}",
        f"  RESNETS: {{DEPTH: {depth}, STRIDE_IN_1X1: False}}",
        "INPUT: {FORMAT: RGB}",
    ]


def stablehlo(source: Source, path: str) -> list[str]:
    shape = f"(n, {source.size}, {source.size}, {source.model['build']['channels']})"
    return [
        f'encoder = jax.export.deserialize(bytearray(open("{path}", "rb").read()))',
        f"features = encoder.call(images)  # uint8 {shape}",
    ]


CODE = {
    "checkpoint": checkpoint,
    "safetensors": safetensors,
    "torchvision": safetensors,
    "torch": torch,
    "timm": timm,
    "huggingface": hugging_face,
    "detectron2": detectron2,
    "stablehlo": stablehlo,
}


def _torchvision(source: Source, weights: str) -> list[str]:
    return [
        "",
        f"model = torchvision.models.{source.model['build']['arch']}()",
        *_changes(source),
        "model.fc = torch.nn.Identity()",
        *_loaded(source, weights),
        "features = model(images)",
    ]


def _changes(source: Source) -> list[str]:
    """The lines that turn a ResNet of torchvision or of timm into this encoder. Both name its modules alike."""
    build = source.model["build"]
    base, lines = stem_channels(build["width"]), []
    if build["width"] != 1:
        lines += [NARROWER.format(base=base, twice=2 * base)]
    if build["width"] != 1 or build["small_images"] or build["channels"] != 3:
        lines += [f"model.conv1 = {_first_convolution(build)}"]
    if build["small_images"]:
        lines += ["model.maxpool = torch.nn.Identity()"]
    return lines


def _first_convolution(build: dict) -> str:
    shape = f"3, padding={build['stem_padding']}" if build["small_images"] else "7, stride=2, padding=3"
    return f"torch.nn.Conv2d({build['channels']}, {stem_channels(build['width'])}, {shape}, bias=False)"


def _loaded(source: Source, weights: str) -> list[str]:
    return [f"model.load_state_dict({weights})", "model.eval()", _images(source)]


def _images(source: Source) -> str:
    shape = f"8, {source.model['build']['channels']}, {source.size}, {source.size}"
    return f"images = torch.zeros({shape})  # replace by your images, normalised by mean and std"
