"""Work done ahead in a thread, so that the next batch is ready when it is needed."""

import queue
import sys
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
SWITCH_S = 5e-4
"""How long a thread that works ahead may hold Python's lock while the training loop waits for it; Python's own 5 ms is
longer than the host's part of a step."""


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


_END = object()


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yields what `items` yields, computed ahead in a thread: up to `depth` items wait, one more is in the making.

    An exception in `items` is raised here, in its turn. Closing this generator (`close()`, or dropping it) stops the
    thread after the item in the making and closes `items`. Python's switch interval is lowered, and stays so.
    """
    assert depth >= 1, depth
    ready: queue.Queue = queue.Queue(depth)
    is_closed = threading.Event()
    source = iter(items)

    def put(item: object) -> bool:
        while not is_closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))
        finally:
            close = getattr(source, "close", None)
            if close:
                close()

    if sys.getswitchinterval() > SWITCH_S:
        sys.setswitchinterval(SWITCH_S)
    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        is_closed.set()
        thread.join()
