"""Dashboards that mirror a run: one module a tracker, each run in a process of its own."""
