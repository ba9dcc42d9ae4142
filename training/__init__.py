"""The parts of `train`.

loop.py          sends steps, reads losses, evaluates, saves
together.py      several trainings at the same time, their steps in one program
steps.py         the loss, and one step of the optimiser, or several in one call
devices.py       the devices that divide each batch among them
hosts.py         several processes that train together
dispatch.py      how many steps are sent to the device at once
evaluation.py    loss, metric and outputs of a whole split
progress.py      what a training needs to be resumed, and where its time went
checkpoints.py   the progress on the disk
"""
