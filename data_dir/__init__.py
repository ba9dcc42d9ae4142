"""Real data sets: from raw files to batches. docs/layout.md says what each module holds.

Axis names: n samples, L time steps, C channels, K classes.
"""
