"""Prefetching: a thread makes batches and puts them on the device while the previous step computes."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable

from bt_jax.messages import UserError


class Prefetch:
    """Iterator over `put(batch)`. A background thread makes it, at most `depth` batches ahead of the consumer.

    The consumer gets an exception of the iterator or of `put` in the place of that batch. The thread closes the
    iterator.

    Args:
      put: moves a batch to the device; called on the background thread, in order.

    Attributes:
      wait_seconds: time that the consumer has spent waiting for batches, the input's share of a slow step.
    """

    def __init__(self, iterator: Iterable, put: Callable, depth: int = 2):
        if depth < 1:
            raise UserError(f"The prefetch depth {depth} is not positive", "Choose at least 1.")
        self.wait_seconds = 0.0
        self._items = queue.SimpleQueue()
        self._slots, self._stopped = threading.Semaphore(depth), threading.Event()
        # The thread has no reference to this object, so garbage collection of the object stops the thread.
        arguments = (iter(iterator), put, self._items, self._slots, self._stopped)
        self._thread = threading.Thread(target=_run_ahead, args=arguments, name="prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _stop, self._slots, self._stopped)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        if self._stopped.is_set():
            raise StopIteration
        began = time.perf_counter()
        item, error = self._items.get()
        self.wait_seconds += time.perf_counter() - began
        if error is not None:
            self.close()
            raise error
        self._slots.release()
        return item

    def close(self):
        """Stops the thread; waits until it has finished its current batch."""
        self._finalizer()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _run_ahead(iterator, put, items, slots, stopped):
    try:
        while True:
            slots.acquire()
            if stopped.is_set():
                return
            items.put((put(next(iterator)), None))
    except BaseException as error:  # includes StopIteration, which ends the consumer's loop
        items.put((None, error))
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def _stop(slots, stopped):
    stopped.set()
    slots.release()
