"""The first run: Barlow Twins on embedded images of scattered digits, on a CPU.

    python -m bt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, smoke=False)
    config = config_lib.pretrain()
    config.batch_size = 256
    config.total_epochs = 20.0
    config.data.name = "digits"
    config.views.name = "cifar"
    config.model.width = 0.25
    config.model.small_images = False
    config.model.projector = (512, 512, 512)
    config.model.dtype = "float32"
    config.evals.every_epochs = 4.0
    if args.smoke:
        config_lib.shrink(config, train_split="train[:256]", val_split="test[:128]")
    return config
