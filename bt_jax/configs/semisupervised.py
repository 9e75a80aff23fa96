"""Learning from 1 % or 10 % of the labels: encoder and classifier are trained, with separate rates.

    python -m bt_jax.main --config=configs/semisupervised.py:percent=1 --workdir=runs/semi --config.encoder=runs/paper

Arguments, after a colon: percent=1 (of each class's training images), protocol=paper|code, smoke. Must reach, for the
paper's ResNet-50 on ImageNet: 55.0 / 79.2 top-1 / top-5 with 1 %, 69.7 / 89.3 with 10 % (paper, Table 2).
The authors' lists of images are TFDS data sets: --config.data.name=imagenet2012_subset/1pct (or 10pct), percent=100.
To compare with training from scratch: --config.scratch.

protocol=paper: rates 0.002 and 0.5, times 0.2 after epochs 12 and 16 of 20 (appendix B.2).
protocol=code: cosine by epoch, rates 0.005 and 0.5 (reference evaluate.py and its README, for the released checkpoint).
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, percent=1.0, protocol="paper", epochs=20, smoke=False)
    config = config_lib.finetune()
    config.data.fraction = args.percent / 100
    config.total_epochs = float(args.epochs)
    config.batch_size = 256
    config.train = "all"
    config.optim.lr_classifier = 0.5
    config.optim.weight_decay = 0.0
    config.optim.momentum = 0.9
    if config_lib.choose("protocol", args.protocol, ("paper", "code")) == "paper":
        config.optim.lr_backbone = 0.002
        config.optim.schedule = "drops"
        config.optim.drop_epochs = (0.6 * args.epochs, 0.8 * args.epochs)  # 12 and 16 of 20
        config.optim.drop_factor = 0.2
    else:
        config.optim.lr_backbone = 0.005
        config.optim.schedule = "cosine"
    if args.smoke:
        config_lib.shrink_finetune(config)
    return config
