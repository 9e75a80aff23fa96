"""Transfer to VOC07 classification: one linear SVM a class on frozen features, mean average precision.

    python -m bt_jax.main --config=configs/transfer_voc07.py --workdir=runs/voc07 --config.encoder=runs/imagenet

Trained on train and validation of TFDS's voc/2007, tested on test. Must reach, for the paper's ResNet-50: 86.2 mAP
(paper, Table 3). Constants: `bt_jax/evals/svm.py`.
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, smoke=False)
    config = config_lib.evaluate()
    config.protocols = ("svm",)
    config.data.name = "voc/2007"
    config.data.train_split = "train+validation"
    config.data.val_split = "test"
    config.data.on_device = False
    config.views.size = 224
    config.evals.resize = 256
    if args.smoke:
        config.data.train_split = "train"
    return config
