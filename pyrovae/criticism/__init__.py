"""Criticism of a fitted pair: how probable rows are, what the latent sites say, and whether probabilities are calibrated.

`pv.importance`, `pv.log_likelihood`, `pv.posterior` and `pv.prior_log_likelihood` estimate `log p(x)` and sample
`p(z | x)`; `pv.kl_by_site`, `pv.active_units` and `pv.collapsed` say which latent sites are in use; `pv.classify`,
`pv.calibration` and `pv.acquisition` are about class probabilities. Some modules have the names of their functions, so
nothing is re-exported here.
"""
