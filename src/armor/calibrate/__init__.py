"""Calibration: token windows, activation streams, moments and what they ask of a layer."""
