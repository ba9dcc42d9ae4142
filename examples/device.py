"""A machine as a program of its own: plain Python and numpy, nothing of this project. docs/machines.md is its manual.

It is a simulated set of saturating oscillators (NonlinHRU). Put a board, an instrument or another simulator in place of
`play`. In a config: "machine": {"name": "process", "command": ["python", "examples/device.py"]}; run with --own_units.
"""

import io
import json
import sys

import numpy as np

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
LIMITS = {"drive": 100.0, "nudge": 100.0, "holds_state": True, "momenta": True}
parameters, end = {}, None


def receive():
    """The call and its arrays; None at the end of the input."""
    line = stdin.readline()
    if not line:
        return None
    message = json.loads(line)
    arrays = {x["name"]: np.load(io.BytesIO(stdin.read(x["bytes"]))) for x in message["arrays"]}
    return message["call"], arrays


def send(arrays, **line):
    """One line of JSON, then the arrays as npy files."""
    files = {name: io.BytesIO() for name in arrays}
    for name, file in files.items():
        np.save(file, np.ascontiguousarray(arrays[name], "<f8"))
    listed = [{"name": x, "shape": arrays[x].shape, "bytes": len(files[x].getvalue())} for x in arrays]
    stdout.write(json.dumps({**line, "arrays": listed}).encode() + b"\n")
    stdout.writelines(file.getvalue() for file in files.values())
    stdout.flush()


def play(q, p, drives, nudges):
    """All steps of a batch from one state. A step is a drift, a kick and a drift; dt is folded into `step`."""
    dt, alpha, W, b = (parameters[name] for name in ("step", "alpha", "W_diag", "b"))
    rows = []
    for drive, nudge in zip(drives, nudges, strict=True):
        start, before = q, p + nudge
        half = q + 0.5 * dt * before
        p = before - dt * (alpha * half + np.tanh(W * half + drive + b))
        q = half + 0.5 * dt * p
        rows.append((start, before, half, p, q))
    starts, before, half, after, ends = (np.array(x) for x in zip(*rows, strict=True))
    return (q, p), ends, {"positions": half, "momenta_before": before, "momenta_after": after, "starts": starts}


while (request := receive()) is not None:
    call, arrays = request
    if call == "hello":
        send({}, version=1, limits=LIMITS)
    elif call == "program":
        parameters = arrays
        send({})
    elif call == "run":
        rest = np.zeros(arrays["drives"].shape[1:])
        end, positions, _ = play(rest, rest, arrays["drives"], np.zeros_like(arrays["drives"]))
        send({"positions": positions})
    elif call == "echo":
        send(play(end[0], -end[1], arrays["drives"], arrays["nudges"])[2])
    else:
        send({}, error=f"unknown call {call}")
