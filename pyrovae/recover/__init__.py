"""What is missing or corrupted in rows, recovered with the rest of them: imputation, restoration, and pooled estimates.

The functions are `pv.impute`, `pv.restore` and `pv.pool`. Their modules have the same names, so nothing is re-exported here.
"""
