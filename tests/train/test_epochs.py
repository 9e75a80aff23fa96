"""Epochs as steps: a data set that fills no batch is an error."""

import pytest

from bt_jax.config import keys
from bt_jax.messages import UserError
from bt_jax.train import epochs


@pytest.mark.parametrize("fraction, said", [(1.0, "in 'train'"), (0.01, "in a share of 0.01 of 'train'")])
def test_images_that_fill_no_batch(fraction, said):
    """A larger share helps where fine-tuning takes only a share of the images."""
    config = keys.finetune()
    config.batch_size, config.data.train_split, config.data.fraction = 16, "train", fraction
    settings = keys.read(config)
    assert epochs.make_plan(settings, 33).steps_per_epoch == 2
    with pytest.raises(UserError, match=f"10 images {said} do not fill one batch of 16") as caught:
        epochs.make_plan(settings, 10)
    assert ("config.data.fraction" in caught.value.fix) == (fraction != 1)
