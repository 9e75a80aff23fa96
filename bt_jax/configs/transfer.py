"""Transfer to Places-205 or iNaturalist 2018: a linear classifier on the frozen encoder.

    python -m bt_jax.main --config=configs/transfer.py:data=places205 --workdir=runs/places --config.encoder=runs/paper

Arguments, after a colon: data=places205|inat18, protocol=paper|vissl, smoke. Must reach, for the paper's ResNet-50:
Places-205 54.1, iNaturalist 46.5 top-1 (paper, Table 3).

protocol=paper: rate 0.01, decay 5e-4, divided by ten at two equally spaced epochs of 14 and 84 (appendix C.1).
protocol=vissl: three drops, at 4, 8, 12 of 14 and 24, 48, 72 of 84, and Nesterov's momentum, as in VISSL's configs; it
also pools the last stage to 6 x 6 for Places (8,192 numbers), where the pooled 2,048 are used here.

Places-205 is no data set of TFDS: give --config.data.folder, or the name of one that you have made; likewise for
iNaturalist 2018 where your TFDS has no i_naturalist2018.
"""

from bt_jax import config as config_lib

EPOCHS = {"places205": 14, "inat18": 84}


def get_config(arg=None):
    args = config_lib.parse_arg(arg, data="places205", protocol="paper", smoke=False)
    config = config_lib.finetune()
    config_lib.choose("data", args.data, EPOCHS)
    config.total_epochs = float(EPOCHS[args.data])
    config.batch_size = 256
    config.data.name = {"places205": "places205", "inat18": "i_naturalist2018"}[args.data]
    config.data.val_split = "validation"
    config.data.on_device = False
    config.views.size = 224
    config.evals.resize = 256
    config.train = "classifier"
    config.optim.lr_classifier = 0.01
    config.optim.weight_decay = 5e-4
    config.optim.momentum = 0.9
    config.optim.schedule = "drops"
    config.optim.drop_factor = 0.1
    epochs = config.total_epochs
    if config_lib.choose("protocol", args.protocol, ("paper", "vissl")) == "paper":
        config.optim.drop_epochs = (epochs / 3, 2 * epochs / 3)
    else:
        config.optim.drop_epochs = tuple(epochs / 14 * at for at in (4, 8, 12))
        config.optim.nesterov = True
    if args.smoke:
        config_lib.shrink_finetune(config)
    return config
