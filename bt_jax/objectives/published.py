"""The recipes of the methods: optimizer, batch, epochs and views of the official code, or of the source in a comment.

With `method=NAME`, the configs for CIFAR-10, ImageNet and folders take these keys from here. Only the config for
folders keeps its own batch and epochs. With `method=NAME,recipe=common`, the configs keep the recipe of Barlow Twins.
Rates are per 256 images. DrLIM and InfoNCE have no published recipe for two views of an image, and keep that of Barlow
Twins. Every schedule here falls along half a cosine, also that of alignment and uniformity, whose official code divides
the rate by ten three times.
"""

from typing import Any

Recipe = dict[str, Any]  # sections of a config


def _optim(name: str, rate: float, weight_decay: float, warmup_epochs: float = 0.0, **keys: Any) -> Recipe:
    """An optimizer with one rate for weights and biases. The rate ends at zero, unless `keys` has an end_factor."""
    rates = {"lr_weights": rate, "lr_biases": rate, "weight_decay": weight_decay, "momentum": 0.9}
    return {"name": name, **rates, "warmup_epochs": warmup_epochs, "start_factor": 0.0, "end_factor": 0.0, **keys}


def _both(**fields: Any) -> Recipe:
    """Both views alike."""
    return {"view1": fields, "view2": fields.copy()}


_BY_EPOCH = {"by_epoch": True}  # adjust_learning_rate in the authors' code of MoCo (also its notebook) and of SimSiam
# google-research/simclr@383d414, run.py and data_util.py: colours of strength 1; for CIFAR 0.5 and no blur (README).
_SIMCLR = _both(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5, solarize=0.0)
_SIMCLR_CIFAR = _both(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0, solarize=0.0)
# facebookresearch/moco@7397dfe, main_moco.py:327-346 with --aug-plus; simsiam@a7bc177 has the same. No blur for CIFAR.
_MOCO = _both(crop_scale=(0.2, 1.0), saturation=0.4, blur=0.5, solarize=0.0)
_MOCO_CIFAR = _both(crop_scale=(0.2, 1.0), saturation=0.4, blur=0.0, solarize=0.0)

# SsnL/align_uniform@e256d47, examples/stl10/main.py; it has no run on ImageNet or CIFAR-10.
_ALIGN_UNIFORM = {"batch_size": 768, "total_epochs": 200.0, "optim": _optim("sgd", 0.12, 1e-4)}
# facebookresearch/luckmatters@625b5f7, ssl/real-dataset/config/byol_config.yaml: SGD, 0.03 at batch 128, 100 epochs.
_DIRECT_PRED = {"batch_size": 128, "total_epochs": 100.0, "optim": _optim("sgd", 0.06, 4e-4)}

IMAGENET: dict[str, Recipe] = {
    "align_uniform": _ALIGN_UNIFORM,
    # deepmind-research/byol@f5de0ed, configs/byol.py: its values for 1000 epochs. Its views are those of Barlow Twins.
    "byol": {"batch_size": 4096, "total_epochs": 1000.0, "optim": _optim("lars", 0.2, 1.5e-6, 10.0)},
    "direct_pred": _DIRECT_PRED,
    # README: 67.5 +- 0.1 linear top-1
    "moco": {"batch_size": 256, "total_epochs": 200.0, "optim": _optim("sgd", 0.03, 1e-4, **_BY_EPOCH), "views": _MOCO},
    # Weight decay: paper, section 2.2, and tf2/run.py:49; 1e-4 in run.py:55.
    "simclr": {"batch_size": 4096, "total_epochs": 1000.0, "views": _SIMCLR}
    | {"optim": _optim("lars", 0.3, 1e-6, 10.0, rate_in_momentum=True)},
    # README: 68.1 linear top-1
    "simsiam": {"batch_size": 512, "total_epochs": 100.0, "views": _MOCO}
    | {"optim": _optim("sgd", 0.05, 1e-4, **_BY_EPOCH)},
    # facebookresearch/vicreg@4e12602, main_vicreg.py; its views are those of Barlow Twins.
    "vicreg": {"batch_size": 2048, "total_epochs": 1000.0, "optim": _optim("lars", 0.2, 1e-6, 10.0, end_factor=0.001)},
}

_CLIPPED = {"clip": True, "trust_coefficient": 0.02}  # solo-learn's LARS for CIFAR

CIFAR10: dict[str, Recipe] = {
    "align_uniform": _ALIGN_UNIFORM,
    # solo-learn@9187ea3, scripts/pretrain/cifar/byol.yaml; the official code has no CIFAR-10.
    "byol": {"batch_size": 256, "total_epochs": 1000.0, "optim": _optim("lars", 1.0, 1e-5, 10.0, **_CLIPPED)},
    "direct_pred": _DIRECT_PRED,
    # The notebook of facebookresearch/moco
    "moco": {"batch_size": 512, "total_epochs": 200.0, "views": _MOCO_CIFAR}
    | {"optim": _optim("sgd", 0.03, 5e-4, **_BY_EPOCH)},
    # README: LARS, 1.0 per 256, batch 512, "around 91"
    "simclr": {"batch_size": 512, "total_epochs": 1000.0, "views": _SIMCLR_CIFAR}
    | {"optim": _optim("lars", 1.0, 1e-4, 10.0, clip=False, trust_coefficient=0.001, rate_in_momentum=True)},
    # Paper, appendix D: a projector of two layers, 800 epochs at batch 512
    "simsiam": {"batch_size": 512, "total_epochs": 800.0, "views": _MOCO_CIFAR, "model": {"projector": (2048, 2048)}}
    | {"optim": _optim("sgd", 0.03, 5e-4, **_BY_EPOCH)},
    # solo-learn@9187ea3, scripts/pretrain/cifar/vicreg.yaml; its variance term is twice ours.
    "vicreg": {"batch_size": 256, "total_epochs": 1000.0, "optim": _optim("lars", 0.3, 1e-4, 10.0, **_CLIPPED)}
    | {"views": _both(crop_scale=(0.2, 1.0), solarize=0.1)},
}
