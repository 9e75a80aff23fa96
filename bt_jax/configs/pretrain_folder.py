"""Barlow Twins on a folder of your own images, labelled by sub-folder or not at all, of any size and format.

    python -m bt_jax.main --config=configs/pretrain_folder.py:batch=256 --config.data.folder=IMAGES --workdir=runs/mine

Arguments, after a colon: batch=256, epochs=300, size=224, arch=resnet50, gray=False, val= (a split that is held out,
such as val), method=barlow_twins (or another of docs/methods.md), recipe=own | common, smoke. Check the images first:
python -m bt_jax.prepare --folder=IMAGES.

The paper's recipe with the authors' rates for the batch, or with recipe=own that of another method
(see pretrain_imagenet_r50.py). Views of up to 64 pixels get
the small-image stem and no blur. It must reach what your data allow: with sub-folders as labels and `val=`, kNN and the
online probe say how far it is; without labels the report's diagonal and spread do.
"""

from bt_jax import config as config_lib
from bt_jax.configs import pretrain_imagenet_r50

SMALL = 64  # pixels: up to here a 7x7 stride-2 stem and a max-pool would leave nothing


def get_config(arg=None):
    images = {"size": 224, "gray": False, "val": ""}
    method = {"method": "barlow_twins", "recipe": "own"}
    args = config_lib.parse_arg(arg, batch=256, epochs=300, arch="resnet50", smoke=False, **images, **method)
    config = pretrain_imagenet_r50.get_config(
        f"batch={args.batch},epochs={args.epochs},method={args.method},recipe={args.recipe}"
    )
    config.data.name = "folder"
    config.data.val_split = args.val
    config.model.arch = args.arch
    config.model.small_images = args.size <= SMALL
    config.views.size = args.size
    config.data.canvas = max(32, round(args.size * 16 / 7))  # 512 for 224: a crop is rarely enlarged
    config.evals.resize = round(args.size * 8 / 7)  # 256 for 224, as in the paper
    config.evals.train_images = 0
    if args.gray:
        config.views.mean, config.views.std = (0.5,), (0.5,)
    if args.size <= SMALL:
        config.views.view1.blur = config.views.view2.blur = 0.0  # as every recipe for small images
    config.optim.grad_scale = 1.0
    config.checkpoint.every_epochs = 10.0
    if args.smoke:
        config_lib.shrink(config, train_split="train.mixed[:64]", val_split=args.val and f"{args.val}.mixed[:32]")
        config.model.arch = "resnet18"
    return config
