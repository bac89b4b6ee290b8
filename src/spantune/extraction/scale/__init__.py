"""Extraction over many processes: GPUs of one machine, and Ray's workers on several machines."""
