"""The job of exploring: what a fitted model makes of values of its latent variables that a person chooses.

`latents` says what can be set of each latent site, `conditions` what the model is given, and `shown` how what comes out is
shown; `noise` keeps what is drawn where it is, and `explorer` answers. None of them knows of HTTP, or of a particular graph.
"""

from pyrovae.app.jobs.explore.explorer import Explorer

__all__ = ["Explorer"]
