"""register: what vLLM calls in each of its processes before it builds a model."""

from __future__ import annotations


def register() -> None:
    """Teach vLLM the quantization method "armor". Any number of calls do the same as one.

    Nothing that is imported here imports numba: vLLM's worker for CPUs dies if that is there before
    it.
    """
    from vllm.model_executor.layers.quantization import register_quantization_config

    from armor.checkpoint.format import METHOD
    from armor.vllm.config import ArmorQuantization

    register_quantization_config(METHOD)(ArmorQuantization)
