"""All faults, by subject."""

from ..fault import Fault
from . import compilers, data, evals, methods, networks, processes, report, storage, texts, training, weights, wiring

FAULTS: tuple[Fault, ...] = (
    *training.FAULTS,
    *methods.FAULTS,
    *wiring.FAULTS,
    *networks.FAULTS,
    *data.FAULTS,
    *evals.FAULTS,
    *storage.FAULTS,
    *processes.FAULTS,
    *weights.FAULTS,
    *report.FAULTS,
    *texts.FAULTS,
    *compilers.FAULTS,
)
