"""Detects and reports faults during training: bad samples, lost ranks, exhausted memory."""
