"""Evaluation of an encoder on frozen features: weighted kNN, a quick linear probe, and label-free metrics.

    python -m bt_jax.main --config=configs/evaluate.py --workdir=runs/mine_evaluated --config.encoder=runs/mine

Data and views are those of the encoder's run folder; --config.data.name (or folder, npz) names others. Minutes on a CPU
for 60,000 small images. Quoted for the paper's ResNet-50 on ImageNet: 20-NN 64.8, 200-NN 62.9 top-1 (VICReg, Table 11).
The linear probe here is fitted on cached features, rate and decay chosen on a held-out tenth of train; the paper's
protocol is configs/linear.py.
"""

from bt_jax import config as config_lib


def get_config(arg=None):
    args = config_lib.parse_arg(arg, smoke=False)
    config = config_lib.evaluate()
    if args.smoke:
        config.smoke = True
        config.evals.train_images, config.evals.val_images, config.evals.spectrum_images = 256, 128, 128
        config.evals.knn_k, config.evals.linear_epochs = (20, 5), 3
    return config
