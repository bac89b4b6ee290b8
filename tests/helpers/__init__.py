"""Helpers that several test modules share: tiny models and tokenizers, local servers, browsers and processes."""
