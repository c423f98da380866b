"""A device that is not the CPU, for machines without a GPU: its tensors compute, and refuse to meet the CPU's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
"""torch's device of tensors without values; inside `Elsewhere` they have some."""

operators: Any = torch.ops.aten
MAY_MEET = (operators._to_copy.default, operators.copy_.default, operators.index.Tensor)
"""What a GPU, too, takes of both devices."""


class Away(Tensor):
    """A tensor of that device. Its values are the CPU tensor `here`."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        strides, offset = here.stride(), here.storage_offset()
        away: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.size(), strides, offset, dtype=here.dtype, device=ELSEWHERE, requires_grad=here.requires_grad
        )
        away.here = here
        return away  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return compute(function, arguments, options or {})


def compute(function: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """What an operator makes of tensors of one device, on it or on the one that it is told."""
    leaves = tree_leaves((arguments, options))
    away = [leaf for leaf in leaves if isinstance(leaf, Away)]
    here = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Away) and leaf.dim() > 0]
    if away and here and function not in MAY_MEET:
        raise RuntimeError(f"{function}: expected all tensors to be on the same device")
    target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    inner, inner_options = tree_map_only(Away, lambda tensor: tensor.here, (arguments, options))
    inner, inner_options = tree_map_only(torch.device, lambda _: torch.device("cpu"), (inner, inner_options))
    result = function(*inner, **inner_options)
    if away and torch.Tag.inplace_view in function.tags:
        with no_dispatch():
            function(*arguments, **options)  # the wrapper's own sizes and strides
    if function._schema.is_mutable and isinstance(result, Tensor):
        return next(leaf for leaf in leaves if getattr(leaf, "here", leaf) is result)
    is_away = bool(away) if target is None else target == ELSEWHERE
    return tree_map_only(Tensor, Away, result) if is_away else result


class Elsewhere(TorchDispatchMode):
    """Within it that device is there."""

    def __init__(self) -> None:
        super().__init__()
        self._functions = _Functions()

    def __enter__(self) -> Elsewhere:
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return compute(function, arguments, options or {})


class _Functions(TorchFunctionMode):
    """What torch does without an operator."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if function is Tensor.tolist and isinstance(arguments[0], Away):
            return arguments[0].here.tolist()
        if function is torch.tensor and options.get("device") is not None:
            device = options.pop("device")
            return function(*arguments, **options).to(device)
        return function(*arguments, **options)
