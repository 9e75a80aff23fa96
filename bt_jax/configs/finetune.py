"""Fine-tuning an encoder on any labelled images, whole or in part.

    python -m bt_jax.main --config=configs/finetune.py --workdir=runs/finetuned --config.encoder=runs/mine \
        --config.data.folder=IMAGES

Arguments, after a colon: epochs=30, smoke. --config.train=layer4 trains the last stage and the classifier alone. The
rates are a place to start, not a measured recipe: choose yours on held-out training images.
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, epochs=30, smoke=False)
    config = config_lib.finetune()
    config.total_epochs = float(args.epochs)
    config.batch_size = 256
    config.train = "all"
    config.optim.lr_classifier = 0.1
    config.optim.lr_backbone = 0.01
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "cosine"
    if args.smoke:
        config_lib.shrink_finetune(config)
    return config
