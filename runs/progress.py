"""What a run shows while it trains."""

import sys
from pathlib import Path


class RunProgress:
    """A bar with loss and metric on a terminal; one line per evaluation where stderr goes elsewhere.

    With a folder for `events` there are event files for TensorBoard in it.
    """

    def __init__(self, name: str, config, events: Path | None):
        from tqdm import tqdm

        self.name, self.config = name, config
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.num_steps,
            desc=name,
            unit="step",
            disable=not self.interactive,
            leave=False,
            dynamic_ncols=True,
        )
        self.validation = ""
        self.events, self.writer = events, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def resume(self, step: int, damaged: dict[int, str]) -> None:
        """The run goes on from a step; `damaged` are the checkpoints that were passed over, and why."""
        for number, problem in damaged.items():
            print(f"{self.name}: the checkpoint of step {number} is damaged: {problem}", file=sys.stderr)
        print(f"{self.name}: goes on from step {step}", file=sys.stderr)
        self.bar.update(step)

    def step(self, _, loss: float) -> None:
        """A step is done."""
        self.bar.set_postfix_str(f"loss {loss:.4f}{self.validation}", refresh=False)
        self.bar.update()

    def evaluation(self, evaluation) -> None:
        """An evaluation is done; `evaluation` is a `train.Evaluation`."""
        metric = self.config.metric
        self.validation = f", validation {metric} {evaluation.val_metric:.4f}"
        if not self.interactive:
            print(
                f"{self.name} step {evaluation.step}/{self.config.num_steps}: loss {evaluation.loss:.4f}, {metric} "
                f"{evaluation.train_metric:.4f} (validation {evaluation.val_metric:.4f}), {evaluation.seconds:.1f} s",
                file=sys.stderr,
            )
        if self.events is None:
            return
        if self.writer is None:
            from tensorboardX import SummaryWriter

            # What an earlier process wrote of this step and later ones counts no more.
            self.writer = SummaryWriter(str(self.events), purge_step=evaluation.step)
        for field, value in evaluation._asdict().items():
            if value is not None and field != "step":
                self.writer.add_scalar(field, value, evaluation.step)
        self.writer.flush()
