"""The first run: Barlow Twins on embedded images of scattered digits, on a CPU.

    python -m bt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, smoke=False)
    config = config_lib.pretrain()
    config.batch_size = 256
    config.total_epochs = 6.0
    config.data.name = "digits"
    config.optim.lr_weights = 0.3
    config.optim.lr_biases = 0.3
    config.optim.weight_decay = 1e-4
    config.optim.trust_coefficient = 0.02
    config.optim.clip = True
    config.optim.grad_scale = 0.1
    config.optim.warmup_epochs = 1.0
    config.views.name = "cifar"
    # No flip, which makes other signs of digits; colours wide open, so that two views share the strokes alone.
    view = {"crop_scale": (0.4, 1.0), "flip": 0.0, "hue": 0.5, "saturation": 0.8, "grayscale": 0.3, "solarize": 0.2}
    config.views.overrides = {"view1": view, "view2": view}
    config.model.width = 0.25
    config.model.small_images = False
    config.model.projector = (512, 512, 512)
    config.model.dtype = "float32"
    config.evals.every_epochs = 1.0
    if args.smoke:
        config_lib.shrink(config, train_split="train[:256]", val_split="test[:128]")
    return config
