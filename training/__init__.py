"""The parts of `train`, which gives their public names.

steps.py         the loss and one step, or several in one call
evaluation.py    loss and metric of a whole split, and its outputs
progress.py      an evaluation, where a training stands, and where its time went
dispatch.py      how many steps are sent to the device at once
"""
