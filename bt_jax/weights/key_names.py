"""Names of torchvision's arrays in other libraries: one function per direction and library, from key to key.

Sources: detectron2's tools/convert-torchvision-to-d2.py, transformers' models/resnet/modeling_resnet.py. timm has
torchvision's own names.
"""

import re
from collections.abc import Callable


def to_detectron2(key: str) -> str:
    """layer1.0.downsample.1.weight -> res2.0.shortcut.norm.weight; bn1.weight -> stem.conv1.norm.weight"""
    if not key.startswith("layer"):
        key = f"stem.{key}"
    key = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", key)
    key = re.sub(r"\bbn(\d)\b", r"conv\1.norm", key)
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def from_detectron2(key: str) -> str:
    key = key.removeprefix("stem.")
    key = re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", key)
    key = re.sub(r"\bconv(\d)\.norm\b", r"bn\1", key)
    return key.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


def to_hugging_face(key: str) -> str:
    """layer2.0.conv1.weight -> encoder.stages.1.layers.0.layer.0.convolution.weight"""
    if not key.startswith("layer"):
        module, _, name = key.partition(".")
        return f"embedder.embedder.{'convolution' if module == 'conv1' else 'normalization'}.{name}"
    stage, block, rest = re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", key).groups()
    rest = re.sub(r"^conv(\d)", lambda found: f"layer.{int(found[1]) - 1}.convolution", rest)
    rest = re.sub(r"^bn(\d)", lambda found: f"layer.{int(found[1]) - 1}.normalization", rest)
    rest = rest.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{rest}"


def from_hugging_face(key: str) -> str:
    if key.startswith("embedder.embedder."):
        module, _, name = key.removeprefix("embedder.embedder.").partition(".")
        return f"{'conv1' if module == 'convolution' else 'bn1'}.{name}"
    match = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", key)
    if not match:
        return key
    stage, block, rest = match.groups()
    rest = re.sub(r"^layer\.(\d)\.convolution", lambda at: f"conv{int(at[1]) + 1}", rest)
    rest = re.sub(r"^layer\.(\d)\.normalization", lambda at: f"bn{int(at[1]) + 1}", rest)
    rest = rest.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    return f"layer{int(stage) + 1}.{block}.{rest}"


# The key of the first convolution in each library, and the function from its keys to torchvision's.
STEMS: dict[str, Callable[[str], str]] = {
    "conv1.weight": str,
    "embedder.embedder.convolution.weight": from_hugging_face,
    "stem.conv1.weight": from_detectron2,
}
