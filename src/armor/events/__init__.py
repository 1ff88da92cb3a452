"""Structured events of a run: what happened, when, to whoever listens (docs/logging.md)."""

from armor.events.jsonlines import JsonLines
from armor.events.logger import Logger
from armor.events.recorder import Recorder, Sink, combine_progress
from armor.events.tensorboard import TensorBoard

__all__ = ["JsonLines", "Logger", "Recorder", "Sink", "TensorBoard", "combine_progress"]
