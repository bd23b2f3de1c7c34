"""What a fitted pair predicts: codes of rows, reconstructions, new rows, decoded latent values.

The functions are `pv.encode`, `pv.reconstruct`, `pv.generate`, `pv.simulate` and `pv.decode`. Their modules have the same
names, so nothing is re-exported here.
"""
