"""TensorBoard's copy of the metrics, written in line: no thread that could die unseen or block."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from tarl_jax.parallel.files import sync_folder, unique, writing


class TensorBoard:
    """Adds scalars to an events file of its own in `folder`.

    purge_step: TensorBoard is told to forget what earlier files say of this step and later ones.
    Raises WriteError; what a full disk let through is cut off again, so the file stays readable.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        self._folder = folder
        self._open(purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step; all of them are with the system when it returns."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if not self._path.exists():  # somebody has cleared the folder: it is a copy
            self.close()
            self._open(None)
        events = []
        for key, value in values.items():
            # The "^" of pass^k may not stand in a tag.
            summary = scalar(re.sub(r"[^-/\w.]", "_", key), value)
            events.append(Event(wall_time=time.time(), step=step, summary=summary))
        self._add(*events)

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        self._file.close()

    def _open(self, purge_step: int | None) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # Readers take the files in the order of their names.
        self._path = self._folder / f"events.out.tfevents.{time.time_ns():019}.{unique()}"
        with writing(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        now = time.time()
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=purge_step, session_log=start))
        self._add(*events)
        sync_folder(self._folder)

    def _add(self, *events) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = b""
        for event in events:  # TensorFlow's record format
            text = event.SerializeToString()
            length = len(text).to_bytes(8, "little")
            for part in (length, text):
                data += part + masked_crc32c(part).to_bytes(4, "little")
        with writing(self._path):
            end = os.fstat(self._file.fileno()).st_size
            try:
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
            except OSError:
                self._file.truncate(end)
                raise
