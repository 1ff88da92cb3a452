"""The plug-in for vLLM: with it installed, ``vllm serve`` and ``LLM`` load an armor checkpoint.

vLLM finds it by an entry point of the group ``vllm.general_plugins``; nothing else of armor knows
it.
"""
