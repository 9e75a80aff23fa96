"""Linear evaluation by the paper's protocol: a classifier on the frozen encoder, 100 epochs of augmented images.

    python -m bt_jax.main --config=configs/linear.py --workdir=runs/linear --config.encoder=runs/imagenet

Arguments, after a colon: epochs=100, smoke. Must reach, for the paper's ResNet-50 on ImageNet: 73.2 / 91.0 top-1 and
top-5 (paper, Table 1). Constants: reference evaluate.py and paper, appendix B.1. The reference reports the best epoch's
accuracy; here it is the last epoch's, so that no epoch is chosen on test images. The reference's last batch of an epoch
may be smaller; here it is left out.
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, epochs=100, smoke=False)
    config = config_lib.finetune()
    config.total_epochs = float(args.epochs)
    config.batch_size = 256
    config.train = "classifier"
    config.optim.lr_classifier = 0.3
    config.optim.weight_decay = 1e-6
    config.optim.momentum = 0.9
    config.optim.schedule = "cosine"
    if args.smoke:
        config_lib.shrink_finetune(config)
    return config
