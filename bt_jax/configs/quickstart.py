"""The first run: Barlow Twins on ten families of drawn patterns (embedded), in minutes on a CPU.

    python -m bt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Arguments, after a colon: method=barlow_twins (or another of docs/methods.md), smoke.

Two to three minutes of training on 2 CPU cores. Its 200-NN top-1 on held-out images must be at least 15 points above
that of raw pixels and that of the same encoder untrained. docs/results.md has the measured means of 3 seeds.
"""

from bt_jax import config as config_lib
from bt_jax import objectives

# 546 steps are too few for a slow momentum network: 0.97 is BYOL's for its shortest schedule
# (configs/byol.py:23 of deepmind-research/byol). The queue is a tenth of the 10,000 images.
OPTIONS = {"moco": {"momentum": 0.97, "queue": 1024}, "byol": {"momentum": 0.97}, "direct_pred": {"momentum": 0.97}}


def get_config(arg=None):
    args = config_lib.parse_arg(arg, method="barlow_twins", smoke=False)
    config = config_lib.pretrain()
    config.batch_size = 128
    config.total_epochs = 7.0
    config.data.name = "patterns"
    config.views.name = "cifar"
    config.views.size = 20
    # Colour says nothing about the family, so the views change it strongly and share the pattern alone. No flip, which
    # would hide the tilt.
    view = {"jitter": 1.0, "saturation": 0.8, "hue": 0.5, "grayscale": 0.5, "solarize": 0.0}
    view |= {"crop_scale": (0.3, 1.0), "flip": 0.0}
    config.views.view1.update(view)
    config.views.view2.update(view)
    config.model.width = 0.25
    config.model.zero_init_residual = False
    config.model.projector = (512, 512, 512)
    config.model.dtype = "float32"
    config.optim.name = "adamw"
    config.optim.lr_weights = 0.004
    config.optim.lr_biases = 0.004
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 1.0
    config.optim.end_factor = 0.0
    config.evals.every_epochs = 2.0
    config.log.every_steps = 39
    objectives.select(config, args.method, OPTIONS)
    if args.smoke:
        config_lib.shrink(config, train_split="train[:256]", val_split="test[:128]")
    return config
