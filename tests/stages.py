"""One stage on the base of the digits, in this process: a few steps of real training."""

from __future__ import annotations

import dataclasses

from pipeline import data
from pipeline.models.network import ModelState, restore
from pipeline.sweep import Recipe
from pipeline.techniques import stage_module
from pipeline.techniques.context import Context
from pipeline.training.checkpoint import read_model
from pipeline.training.loop import Course, Hooks, Training, fit
from pipeline.training.recipe import machine
from tests.test_techniques import split_of

RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=0.05, precision="fp32", warmup=0.0)


def base_of(bench) -> ModelState:
    return read_model(bench.work.cell(bench.base.id).model)


def run(bench, stage: str, state: ModelState | None = None, watch=None, seed=1, **settings):
    """The state after the stage; the one before stays as it is. ``watch(state)``: called after each
    of the 8 steps of an epoch."""
    split = split_of(bench)
    few = dataclasses.replace(split, train=data.sample(split.train, 128, 0))
    settings = stage_module(stage).Settings(**settings)
    here = machine(RECIPE, "cpu")

    def train(start, objective, epochs, recipe, after_step=lambda *_: None, **_):
        def both(now, step, steps):
            after_step(now, step, steps)
            if watch:
                watch(now)

        training = Training(start())
        course = Course(recipe, epochs, objective(training.state), here, seed)
        return fit(training, few, course, Hooks(after_step=both)).state

    cell = dataclasses.replace(bench.base, recipe=RECIPE)
    context = Context(cell, few, here, seed, lambda: base_of(bench), train, lambda event: None)
    copy = restore(state.spec, state.network.state_dict()) if state else base_of(bench)
    return stage_module(stage).apply(copy, settings, context)
