"""The builder for task files; `sandbox.prepare` imports it where tensorflow-datasets is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from tarl_jax.config.plain import dumps
from tarl_jax.types import Task


class TarlTasks(tfds.core.GeneratorBasedBuilder):
    """Tasks of a file; each example is the JSON line of one (`Task.from_json`)."""

    VERSION = tfds.core.Version("1.0.0")
    tasks: Sequence[Task]

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tasks for tool-using agents: what a user wants, and the calls that do it.",
            features=tfds.features.FeaturesDict({"task": tfds.features.Text()}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        splits = dict.fromkeys(task.split for task in self.tasks)
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for number, task in enumerate(self.tasks):
            if task.split == split:
                yield number, {"task": dumps(task.to_json())}


def builder(tasks: Sequence[Task], name: str, data_dir: str | None) -> TarlTasks:
    """The builder of `tarl_tasks/name` in TFDS's folder `data_dir` (None: its default)."""
    made = TarlTasks(config=tfds.core.BuilderConfig(name=name, version="1.0.0"),
                     data_dir=data_dir, file_format="array_record")
    made.tasks = tasks
    return made
