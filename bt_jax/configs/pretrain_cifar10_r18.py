"""Barlow Twins on CIFAR-10 with ResNet-18, 1000 epochs; solo-learn's recipe, which reaches 92.10 top-1 (online probe).

    python -m bt_jax.main --config=configs/pretrain_cifar10_r18.py --workdir=runs/cifar10

Arguments, after a colon: method=barlow_twins (or another of docs/methods.md), recipe=own (default) | common | lightly,
epochs=1000, batch=256, smoke.
Without TensorFlow: --config.data.npz=FILE, written by `bt-jax prepare --data=cifar10 --npz=FILE`.

recipe=common: solo-learn @9187ea3, scripts/pretrain/cifar/barlow.yaml; quoted: online 92.10 after 1000 epochs, one GPU.
recipe=own: the same for Barlow Twins; another method has its own recipe (bt_jax/objectives/published.py) with its own
batch and epochs. With common or lightly, no number is known for it.
recipe=lightly: lightly @e8d317f, cifar10_benchmark.py with a two-layer projector; quoted: 200-NN 84.2 after 200 epochs
at batch 128 in 376 minutes on one A6000.
"""

from bt_jax import config as config_lib
from bt_jax import objectives
from bt_jax.objectives import published

OPTIONS = {  # of other codes for CIFAR-10
    "simclr": {"temperature": 0.5},  # google-research/simclr, README
    "moco": {"queue": 4096, "momentum": 0.99, "temperature": 0.1},  # facebookresearch/moco, its notebook
    "byol": {"momentum": 0.99},  # solo-learn
}


def get_config(arg=None):
    args = config_lib.parse_arg(arg, recipe="own", epochs=0, batch=0, method="barlow_twins", smoke=False)
    config = config_lib.pretrain()
    config.data.name = "cifar10"
    config.log.every_steps = 65  # a third of an epoch at batch 256
    recipe = config_lib.choose("recipe", args.recipe, ("own", "common", "lightly"))
    (lightly if recipe == "lightly" else solo)(config)
    objectives.select(config, args.method, OPTIONS, published.CIFAR10 if recipe == "own" else {})
    config.total_epochs = float(args.epochs or config.total_epochs)
    config.batch_size = args.batch or config.batch_size
    if args.smoke:
        config_lib.shrink(config, train_split="train[:256]", val_split="test[:128]")
    return config


def solo(config):
    config.batch_size = 256
    config.total_epochs = 1000.0
    config.views.name = "cifar"
    config.model.stem_padding = 2  # solo-learn's own stem
    config.model.zero_init_residual = False
    config.model.projector = (2048, 2048, 2048)
    config.model.projector_bias = True
    config.objective.lambd = 0.0051
    config.optim.lr_weights = 0.3
    config.optim.lr_biases = 0.3
    config.optim.weight_decay = 1e-4
    config.optim.trust_coefficient = 0.02  # with the clip, for small data sets (solo-learn issue 109)
    config.optim.clip = True
    config.optim.warmup_epochs = 10.0
    config.optim.start_factor = 1e-4  # 3e-5 of 0.3
    config.optim.end_factor = 0.0
    config.optim.grad_scale = 0.1  # solo-learn's scale_loss


def lightly(config):
    config.batch_size = 128
    config.total_epochs = 200.0
    config.views.name = "lightly_cifar"
    config.model.zero_init_residual = False
    config.model.projector = (2048, 2048)
    config.objective.lambd = 5e-3
    config.optim.name = "sgd"
    config.optim.lr_weights = 0.12  # 0.06 per 128
    config.optim.lr_biases = 0.12
    config.optim.weight_decay = 5e-4
    config.optim.momentum = 0.9
    config.optim.warmup_epochs = 0.0
    config.optim.by_epoch = True
    config.optim.end_factor = 0.0
