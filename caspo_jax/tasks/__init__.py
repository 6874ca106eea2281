"""Embedded reasoning tasks with exact step checkers, and the tiny policies that ship with the library."""

from caspo_jax.tasks.registry import SPLITS, TASKS, Task, TaskVerifier, extract_answer, get_task

__all__ = ["SPLITS", "TASKS", "Task", "TaskVerifier", "extract_answer", "get_task"]
