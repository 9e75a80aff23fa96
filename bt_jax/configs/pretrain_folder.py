"""Barlow Twins on a folder of your own images, labelled by sub-folder or not at all, of any size and format.

    python -m bt_jax.main --config=configs/pretrain_folder.py:batch=256 --config.data.folder=IMAGES --workdir=runs/mine

Arguments, after a colon: batch=256, epochs=300, size=224, arch=resnet50, gray=False, val= (what is held out: a share
such as 20%, or a split such as val), method=barlow_twins (or another of docs/methods.md), recipe=own | common, small,
smoke. Check the images first: bt-jax prepare --folder=IMAGES.

Barlow Twins has the paper's recipe with the authors' rates for the batch. Another method has its own published recipe
(recipe=own, the default), or that of Barlow Twins (recipe=common). Views of up to 64 pixels get the small-image stem
and no blur. With sub-folders as labels and `val=`, kNN and the online probe measure the features. Without labels, watch
the diagonal and the spread in the report.

`small` is for a few hundred photographs on a CPU, where the paper's recipe takes too few steps to learn: batch=32,
epochs=50, size=64, recipe=common, arch=resnet18 of a quarter of the width, and the projector and optimizer of the
quickstart.
"""

from bt_jax import config as config_lib
from bt_jax.configs import pretrain_imagenet_r50
from bt_jax.messages import UserError

SMALL = 64  # pixels: up to here a 7x7 stride-2 stem and a max-pool would leave a last map of 2x2 or less
USUAL = {"batch": 256, "epochs": 300, "size": 224, "arch": "resnet50"}
FEW_IMAGES = {"batch": 32, "epochs": 50, "size": 64, "arch": "resnet18"}


def get_config(arg=None):
    others = {"gray": False, "val": "", "method": "barlow_twins", "recipe": "own", "small": False, "smoke": False}
    args = config_lib.parse_arg(arg, **USUAL, **others)
    if args.small:
        args = config_lib.parse_arg(arg, **FEW_IMAGES, **others | {"recipe": "common"})
    config = pretrain_imagenet_r50.get_config(
        f"batch={args.batch},epochs={args.epochs},method={args.method},recipe={args.recipe}"
    )
    config.data.name = "folder"
    config.data.train_split, config.data.val_split = train, val = splits(args.val)
    config.model.arch = args.arch
    config.model.small_images = args.size <= SMALL
    config.views.size = args.size
    config.data.canvas = max(32, round(args.size * 16 / 7))  # 512 for 224: a crop is rarely enlarged
    config.evals.resize = round(args.size * 8 / 7)  # 256 for 224, as in the paper
    config.evals.train_images = 0
    if args.gray:
        config.views.mean, config.views.std = (0.5,), (0.5,)
    if args.size <= SMALL:
        config.views.view1.blur = config.views.view2.blur = 0.0  # as in the recipes for CIFAR-10
    config.optim.grad_scale = 1.0
    config.checkpoint.every_epochs = 10.0
    if args.small:
        shrink_for_few_images(config)
    if args.smoke:
        config_lib.shrink(config, train_split=f"{mixed(train)}[:64]", val_split=val and f"{mixed(val)}[:32]")
        config.model.arch = "resnet18"
    return config


def shrink_for_few_images(config):
    config.model.width = 0.25
    config.model.projector = tuple(min(width, 512) for width in config.model.projector)
    config.model.dtype = "float32"  # CPUs compute slowly with bfloat16
    # With LARS at the authors' rates, one gradient changes a weight by less than 1e-4 of its size: few steps change too
    # little.
    config.optim.name = "adamw"
    config.optim.lr_weights = config.optim.lr_biases = 0.004
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 2.0
    config.optim.end_factor = 0.0


def splits(val):
    """Training and held-out split. For "20%", they are parts of each class; for a split, train and that split."""
    if not val.rstrip("%").isdigit():
        return "train", val
    share = int(val.rstrip("%"))
    if not val.endswith("%") or not 0 < share < 100:
        raise UserError(f"val={val} is no share of the images", "Write e.g. val=20%, or the name of a split.")
    return f"train.mixed[:{100 - share}%]", f"train.mixed[{100 - share}%:]"


def mixed(split):
    """A split with its classes mixed, so that a slice of it has a part of each class; a sliced split stays as it is."""
    return split if "[" in split else f"{split}.mixed"
