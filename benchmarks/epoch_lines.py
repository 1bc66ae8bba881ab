"""A callback that prints a line at the end of every epoch, for ``under_load.py`` to count."""

from lightning.pytorch import Callback


class EpochLines(Callback):
    """``epoch N``, at once."""

    def on_train_epoch_end(self, trainer, pl_module):
        print(f"epoch {trainer.current_epoch}", flush=True)
