"""`Plan`: how a meta-step runs, and why; `Asked`: what of that was decided before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from fastmaml.engine.guards.dependencies import Dependencies
from fastmaml.engine.memory.law import MemoryLaw
from fastmaml.engine.routing.row_tables import RowTable
from fastmaml.engine.step.label_checks import Classes
from fastmaml.engine.step.program import Program
from fastmaml.gradients import GradientMethod


@dataclass(frozen=True, repr=False)
class Plan:
    """How a meta-step runs, and why.

    Attributes:
        gradient: how the inner loop is differentiated, or the user's own function of a task.
        backend: what runs the model's layers.
        chunk: how many tasks run at a time.
        batched: whether they run under vmap.
        repeatable: whether the model draws only random numbers that can be drawn again.
        own_statistics: see `Routing`.
        classes: how many classes the labels of support sets may name, and those of the query set,
            where that is known.
        normalises: the module that normalises by its batch's statistics, if there is one.
        bytes_step: measured bytes that one inner step of one task keeps for its derivatives.
        bytes_query: the same for the query pass; guessed where its loss is not differentiated.
        bytes_estimate: the estimated peak of the whole meta-step, beyond the model and the data.
        bytes_first: the same of the first call, which records it.
        bytes_budget: what the two were held against.
        law: how that peak grows with inner steps and with tasks at the same time.
        reasons: one line for every choice.
        tables: embeddings that adapt in the rows that a task looks up.
        unreached: about a trainable tensor that would get no meta-gradient; nothing if there is
            none.
        depends: what it holds for.
        restless: what of that changes whenever the model runs.
        uncertain: whether the code may do something else when it runs again.
        recorded: whether it may run from recordings.
        refusal: why tasks run one at a time; empty where vmap batches them.
        sizes: see `Program`.
        regions: see `TaskForward`.
    """

    gradient: GradientMethod
    backend: str
    chunk: int
    batched: bool
    repeatable: bool
    own_statistics: bool
    classes: Classes
    bytes_step: int
    bytes_query: int
    bytes_estimate: int
    bytes_first: int
    bytes_budget: int
    law: MemoryLaw
    reasons: tuple[str, ...]
    tables: tuple[RowTable, ...] = ()
    unreached: str = ""
    depends: Dependencies = field(default_factory=Dependencies)
    restless: str = ""
    uncertain: bool = False
    recorded: bool = True
    refusal: str = ""
    sizes: Literal["", "vary", "known"] = ""
    regions: bool = False
    normalises: str | None = None

    def __str__(self) -> str:
        return "\n".join(self.reasons)

    __repr__ = __str__

    def worn_out(self) -> Plan | None:
        """This plan for eager, watched runs, or None; see `Depending`."""
        if self.gradient.tried_once:
            return None
        depends, recorded = Dependencies.worn_out(), self.gradient.runs_loop and self.recorded
        return replace(self, tables=(), uncertain=True, recorded=recorded, depends=depends)

    def applied(self, program: Program) -> Program:
        """The program with what was decided."""
        forward = replace(
            program.forward,
            batched=self.batched,
            backend=self.backend,
            own_statistics=self.own_statistics,
            regions=self.regions,
            keeps_buffers=program.forward.keeps_buffers and self.gradient.runs_loop,
        )
        return replace(
            program,
            method=self.gradient,
            chunk=self.chunk,
            repeatable=self.repeatable,
            forward=forward,
            tables=self.tables,
            unreached=self.unreached,
            depends=self.depends,
            uncertain=self.uncertain,
            sizes=self.sizes,
        )


@dataclass(frozen=True)
class Asked:
    """What of a plan is not for it to decide.

    Attributes:
        method: the gradient method; None to choose an exact one.
        chunk: the number of tasks to run at a time; None to choose.
        budget: bytes that the meta-step may use; None for half of what is free.
        fixed_backend: keep the program's backend even where another can batch the tasks.
        lanes: how many chunks run from recordings at the same time; 0 where none is recorded.
    """

    method: GradientMethod | None = None
    chunk: int | None = None
    budget: int | None = None
    fixed_backend: bool = False
    lanes: int = 0
