"""The template's half of the service: how it is configured, started, watched and stopped.

Never edited by hand: an update of the template replaces this package. It imports nothing of the service.
"""
