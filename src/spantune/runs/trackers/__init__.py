"""Dashboards that mirror a run: each tracker has its own module and runs in its own process."""
