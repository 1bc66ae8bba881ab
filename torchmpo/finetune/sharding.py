"""Training that is sharded over processes: each holds a part of every weight.

``Trainer(strategy="fsdp2")``, on the command line also ``--trainer.strategy fsdp``: torch's fully
sharded data parallelism, by Lightning's ModelParallelStrategy. A checkpoint is the file that one
process would write, so any number of processes can go on from it, with any strategy.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmpo.runs.errors import UserError, missing_package, nearest

try:
    from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
except ModuleNotFoundError as error:
    raise missing_package(error, "llm") from error

NAME = "fsdp2"
OTHERS = {  # of Lightning's that shard, and what speaks against them
    "FSDPStrategy": "needs a GPU, clips no gradients and writes checkpoints for itself only",
    "ModelParallelStrategy": "writes checkpoints for itself only",
    "DeepSpeedStrategy": "needs a GPU, shows no gradients and writes checkpoints that are pickles",
}


class FullySharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over all processes, with checkpoints that are whole.

    Lightning's own numbers the optimizer's state by all parameters, where an optimizer numbers it
    by those that it trains, so that neither could go on from the other.

    Args:
        kwargs: ``process_group_backend`` and ``timeout``, see Lightning.
    """

    strategy_name = NAME

    def __init__(self, **kwargs: Any):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained: nothing else goes into a checkpoint."""
        module = self.lightning_module
        assert module is not None
        return {n: whole(p.detach()) for n, p in module.named_parameters() if p.requires_grad}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state = optimizer.state_dict()
        values = {
            number: {key: whole(value) for key, value in of_parameter.items()}
            for number, of_parameter in state["state"].items()
        }
        return state | {"state": values}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        path = self.broadcast(checkpoint_path)
        return self.checkpoint_io.load_checkpoint(
            path, map_location=lambda storage, _: storage, weights_only=weights_only is not False
        )

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            values = {
                number: {key: _part(value, parameters[number]) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": values})


StrategyRegistry.register(NAME, FullySharded, FullySharded.__doc__ or "", override=True)


def is_sharded(trainer: Any) -> bool:
    """Whether no process of a Trainer has the whole model."""
    return trainer is not None and isinstance(trainer.strategy, FullySharded)


def check_strategy(trainer: Any) -> None:
    """Refuse what shards in a way that this library cannot follow.

    Raises:
        UserError: Lightning's FSDP, DeepSpeed or plain ModelParallelStrategy.
    """
    kinds = type(trainer.strategy).__mro__
    if FullySharded not in kinds:
        for kind in kinds:
            _refuse(kind.__name__, kind.__name__)


def _refuse(name: str, word: str) -> None:
    if name in OTHERS:
        raise UserError(
            f"trainer.strategy {word} is not supported, because it {OTHERS[name]}: take {NAME}, "
            "which shards the same things"
        )


def shard(policy: Any, mesh: Any) -> None:
    """Divide a :class:`torchmpo.finetune.models.TokenLogps` among processes, layer by layer.

    Args:
        policy: changed in place; each process has the whole of it.
        mesh: of one dimension, over all processes.
    """
    from torch.distributed.fsdp import fully_shard

    model = policy.model
    if getattr(model, "is_quantized", False):
        raise UserError(f"quantization cannot be sharded: take trainer.strategy ddp, not {NAME}")
    # Layers are what transformers itself would not split. Embeddings may be shared with the head.
    layers = getattr(model, "_no_split_modules", None) or ()
    embeddings = model.get_input_embeddings()
    for module in reversed(list(model.modules())):  # inner ones first
        if type(module).__name__ in layers and embeddings not in module.modules():
            fully_shard(module, mesh=mesh)
    # The whole, and not only the model: it is what is called, and reads the head's weights.
    fully_shard(policy, mesh=mesh)


def whole(value: Any) -> Any:
    """A tensor as one process would have it, on the CPU; all processes must ask.

    What is not sharded stays as it is.
    """
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def whole_state(model: Any) -> dict[str, Any]:
    """The state of a model as one process would have it, on the CPU; all processes must ask."""
    known: dict[int, Any] = {}  # weights that are shared stay so
    state = model.state_dict(keep_vars=True)
    for value in state.values():
        if id(value) not in known:
            known[id(value)] = whole(value.detach())
    return {name: known[id(value)] for name, value in state.items()}


def load_whole(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that are named, sharded or not; all processes must ask."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name in sorted(weights):
            own[name].copy_(_part(weights[name], own[name]))


def _part(value: Any, parameter: Any) -> Any:
    """This process's part of what belongs to a parameter; what is not as large stays whole."""
    if not hasattr(parameter, "full_tensor") or getattr(value, "shape", None) != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(parameter.device, parameter.dtype)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def strategy_name(word: str) -> str:
    """Lightning's name of the strategy that a user's word stands for.

    Raises:
        UserError: there is none, or it does not fit a command or :func:`check_strategy`.
    """
    if word == "fsdp":
        return NAME
    name = word.rsplit(".", 1)[-1]
    if name.startswith("deepspeed"):
        name = "DeepSpeedStrategy"
    _refuse(name, word)
    # Processes that are forked or spawned leave this one without a trained model.
    own = ("ddp_find", NAME)
    known = ["auto", "ddp", "fsdp", *(key for key in StrategyRegistry if key.startswith(own))]
    if name not in known:
        raise UserError(f"unknown trainer.strategy {word!r}: {nearest(name, known)}")
    return name
