"""Captured execution: a meta-step recorded once as a flat program, and replayed.

The meta-step is a pure function of parameters, buffers, episodes and seeds. Recorded for one chunk
of tasks, it replays without autograd, vmap or the model's own Python code, to the same bits as the
eager run that it was recorded from. Chunks run on all cores, each from its beginning to its end.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmaml.engine.base.attempt import caught, is_out_of_memory
from fastmaml.engine.base.equality import same_values
from fastmaml.engine.guards.modes_around import modes_around
from fastmaml.engine.guards.plans import Identity, key_of
from fastmaml.engine.guards.sight import Sight
from fastmaml.engine.recording.arguments import FlatCall, Function, Layout, flattened
from fastmaml.engine.recording.as_recorded import AsRecorded
from fastmaml.engine.recording.cuda_graph import CudaGraph, GraphRoom, has_graphs, is_elsewhere
from fastmaml.engine.recording.fresh_constants import require_constants
from fastmaml.engine.recording.general import Family, Sample
from fastmaml.engine.recording.native import natively
from fastmaml.engine.recording.optimize import cleaned
from fastmaml.engine.recording.replay import Recording, Traceable, replay
from fastmaml.engine.recording.replay_code import compiled
from fastmaml.engine.recording.spot_checks import TRIES, difference, due, same_each_time, spot_check
from fastmaml.engine.recording.tape import Tape, UncapturableError, record
from fastmaml.engine.step.meta_step import meta_step
from fastmaml.engine.step.program import Call, MetaResult

MAX_RECORDINGS = 8
"""Recordings (and refusals) kept; the one that was not used for longest goes first."""

MAX_FORGOTTEN_KEYS = 64
"""Kinds whose recordings went, of which it is known that they were there."""

_log = logging.getLogger("fastmaml")


class Captured:
    """Runs meta-steps from recordings; each kind of meta-step is recorded at its first call.

    A recording is made anew when shapes, dtypes, layouts, the rule, the gradient method, autocast,
    or the model's or the loss's settings change (see `Dependencies`). Values of tensors, learned
    rates among them, are read at every replay.

    Args:
        prepare: turns a cleaned tape into what runs; None for replays of our own.
        required: raise where a meta-step cannot be captured; else it runs eagerly, which is
            logged once.
        spot_checks: run calls 2, 4, 8, ... of a recording eagerly, too (see `spot_checks`).

    A copy (`copy.deepcopy`, pickling) begins without recordings.
    """

    def __init__(
        self,
        prepare: Callable[[Tape], Function] | None = None,
        required: bool = False,
        spot_checks: bool = True,
    ) -> None:
        self.prepare, self.required, self.spot_checks = prepare, required, spot_checks
        self._kept: OrderedDict[Any, Recording | UncapturableError] = OrderedDict()
        self._families: OrderedDict[Any, Family] = OrderedDict()
        self._misses_in_a_row = self._returned = 0
        self._gone: OrderedDict[int, None] = OrderedDict()
        self._told: set[str] = set()
        self._rooms: dict[torch.device, GraphRoom] = {}

    def __call__(self, call: Call) -> MetaResult:
        """As `meta_step`, on the reference backend to the same bits.

        `MixedMode` excepted: PyTorch takes other forward-mode formulas while it is recorded, and
        the difference is rounding.

        Raises:
            RuntimeError: it cannot be captured, and that is required; the message says why.
            StaleRecordingError: a spot check found that its recording is not what the model
                computes.
        """
        try:
            _require_no_mode()
            return self._replayed(flattened(call))
        except UncapturableError as error:
            message = f"this meta-step cannot be captured: {error}"
        if self.required:
            raise RuntimeError(f"{message}. Use executor='eager', or None to let it be chosen.")
        if message not in self._told:
            self._told.add(message)
            _log.warning("%s; it runs eagerly", message)
        return meta_step(call)

    def explain(self, call: Call) -> str:
        """How such a meta-step runs, and why: a line. Records it, if that was not done before."""
        try:
            _require_no_mode()
            found = self.recording(flattened(call).chunks()[0])
        except UncapturableError as error:
            return f"executor: eager, as this meta-step cannot be captured: {error}"
        return f"executor: captured, {found.operations} operations for a chunk of tasks"

    def __getstate__(self) -> dict[str, Any]:
        names = ("prepare", "required", "spot_checks")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def recording(self, flat: FlatCall) -> Recording:
        """The recording for such arguments, made when they are first seen.

        Raises:
            UncapturableError: there can be none, or each of the last meta-steps needed another.
        """
        program = flat.program
        forward, depends = program.forward, program.depends
        method = program.method.on(flat.seeds.device)
        if refusal := depends.refusal or method.unrecordable:
            raise UncapturableError(refusal)
        key = (
            Identity(depends),
            key_of((method, program.tables)),
            (program.steps, forward.backend, forward.batched, forward.own_statistics),
            flat.kind(),
        )
        if not depends.hold(flat.call.users):
            raise UncapturableError(f"{depends.guards.changed()} changed before it ran")
        known = self._kept.get(key)
        if isinstance(known, Recording) and known.stale():
            del self._kept[key]
        varies = program.sizes and self.prepare is None and flat.seeds.device.type == "cpu"
        family = self._family((*key[:-1], flat.general_kind())) if varies else None
        if key not in self._kept and family is not None and program.sizes == "known":
            foretold = family.at(flat.sizes(), flat.tensors())
            if foretold is not None:
                self._rested()
                return foretold
        if key not in self._kept:
            if family is None or not family.young():
                self._count(hash(key))
            try:
                self._kept[key] = self._record(flat, family)
            except UncapturableError as refusal:  # its traceback holds what was recorded
                self._kept[key] = UncapturableError(str(refusal))
            if len(self._kept) > MAX_RECORDINGS:
                gone, _ = self._kept.popitem(last=False)
                self._gone[hash(gone)] = None
                if len(self._gone) > MAX_FORGOTTEN_KEYS:
                    self._gone.popitem(last=False)
        else:
            self._rested()
            self._kept.move_to_end(key)
        found = self._kept[key]
        if isinstance(found, UncapturableError):
            raise UncapturableError(str(found))
        return found

    def recordings(self, chunks: Sequence[FlatCall]) -> list[Recording]:
        """The recording of each chunk of a call; all but the last are alike.

        Raises:
            UncapturableError: as `recording`.
        """
        found = [self.recording(chunks[0])] * len(chunks)
        if chunks[-1].tasks != chunks[0].tasks:
            found[-1] = self.recording(chunks[-1])
        return found

    def _family(self, key: Any) -> Family:
        """What is known of such meta-steps at other sizes."""
        family = self._families.setdefault(key, Family())
        self._families.move_to_end(key)
        if len(self._families) > MAX_RECORDINGS:
            self._families.popitem(last=False)
        return family

    def _rested(self) -> None:
        """A recording was there."""
        if self._misses_in_a_row < MAX_RECORDINGS:
            self._misses_in_a_row = 0

    def _count(self, kind: int) -> None:
        """Refuse another recording, for good, where they would be made again and again."""
        self._returned += self._returned < MAX_RECORDINGS and kind in self._gone
        if self._returned == MAX_RECORDINGS:
            raise UncapturableError(
                f"more than {MAX_RECORDINGS} kinds of meta-steps take turns (most often other "
                "shapes: pad to fewer lengths), so that recordings were made again"
            )
        if self._misses_in_a_row == MAX_RECORDINGS:
            raise UncapturableError(
                f"{MAX_RECORDINGS} meta-steps in a row were each of another kind (other shapes, or "
                "a setting of the model or the loss that changes with every call)"
            )
        self._misses_in_a_row += 1

    def _record(self, flat: FlatCall, family: Family | None = None) -> Recording:
        chunk = Traceable(flat)
        depends = flat.program.depends
        with torch.enable_grad(), Sight() as sight:
            tape, results = _recorded(chunk, chunk.tensors)
            if new := sight.raised - depends.raised:
                raise UncapturableError(caught(*new.pop()))
            require_constants(
                tape, lambda moved: _recorded(chunk, moved)[0], chunk.tensors, depends.tensors()
            )
        depends.settle()
        flat.program.watched(sight)
        if depends.refusal:
            raise UncapturableError(depends.refusal)
        graphs = self.prepare is None and has_graphs(flat.seeds.device)
        # A graph would keep the numbers of a host's tensor that it read when it was captured.
        if graphs and any(is_elsewhere(x, flat.seeds.device) for x in (*chunk.tensors, *results)):
            raise UncapturableError(
                "a parameter, a buffer, a learned rate or a result is on another device, where a "
                "CUDA graph does not look: move all of it, by maml.to(device)"
            )
        hosts = frozenset(v for v, x in tape.constants.items() if graphs and x.device.type == "cpu")
        fixed = [*tape.fixed, *((tape.constants[v], tape.constants[v].clone()) for v in hosts)]
        general = tape.copy() if family is not None and family.learns() else None
        # Inductor places results itself, and takes fewer of the views that are written through.
        tape = cleaned(tape, in_place=self.prepare is None, known=hosts)
        of = chunk.tensors, results, chunk.layout, flat
        native = self.prepare is None and flat.seeds.device.type == "cpu"
        run = _native(tape, of) if native else None
        if run is None:
            run = compiled(tape)
            _check(run, *of)
        if self.prepare is not None:
            run = self.prepare(tape)
        if graphs:
            run = self._graph(run, chunk.tensors, flat.seeds.device)
            _check(run, *of)
        if general is not None and family is not None:
            general = cleaned(general, computes_constants=False)
            family.add(Sample(flat.sizes(), general, chunk.layout))
        return Recording.of(run, tape, chunk.layout, fixed)

    def _graph(self, run: Function, tensors: list[Tensor], device: torch.device) -> CudaGraph:
        if device not in self._rooms:
            self._rooms[device] = GraphRoom(device)
        with AsRecorded():
            return CudaGraph(run, tensors, self._rooms[device])

    def _replayed(self, flat: FlatCall) -> MetaResult:
        chunks = flat.chunks()
        recordings = self.recordings(chunks)
        own = self.prepare is None and flat.seeds.device.type == "cpu"
        result = replay(chunks, recordings, own)
        for recording in dict.fromkeys(recordings):
            recording.uses.calls += 1
            if self.spot_checks and due(recording.uses.calls):
                # Another chunk at each time, of those that it is for.
                own_chunks = [c for c, r in zip(chunks, recordings, strict=True) if r is recording]
                self._check(
                    own_chunks[recording.uses.calls.bit_length() % len(own_chunks)], recording
                )
        return result

    def _check(self, flat: FlatCall, recording: Recording) -> None:
        """Hold a recording against an eager run."""

        def anew() -> Function:
            return self._record(flat).run

        try:
            spot_check(flat, recording.layout, recording.run, anew)
        except BaseException:  # whatever it is: the next call must not replay it
            self._kept.clear()
            self._families.clear()
            raise


def _check(
    run: Function,
    tensors: Sequence[Tensor],
    expected: Sequence[Tensor],
    layout: Layout,
    flat: FlatCall,
) -> None:
    """Refuse a recording that does not give what it was recorded from.

    On the CPU that is the same bits. Elsewhere kernels may add in another order, each time that
    they run: two replays tell how much that is worth, and where it tips an element over at a kink,
    one of `TRIES` replays has to agree.
    """
    steady, worst = same_each_time(flat), None
    for _ in range(1 if steady else TRIES):
        try:
            with AsRecorded():
                found = run(*tensors)
                exactly = all(map(same_values, found, expected))
                again = found if exactly or steady else run(*tensors)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UncapturableError(f"its replay fails with {why}") from error
        worst = None if exactly else difference(found, expected, layout, flat, again)
        if exactly or (worst is None and not steady):
            return
    where = f" ({worst.of} is off by {worst.size:.1e} of its norm)" if worst else ""
    raise UncapturableError(
        f"its replay differs from the run that it was recorded from{where}: something in the "
        "model, the loss or the rule depends on more than tensors and settings"
    )


def _native(tape: Tape, of: tuple[Any, ...]) -> Function | None:
    """The replay without Python, as far as it can be; None where it gains nothing, or differs."""
    found = natively(tape)
    if found is None:
        return None
    try:
        for _ in range(2):  # from the second run on, as in all to come, it has one block of memory
            _check(found, *of)
    except UncapturableError as error:
        _check(compiled(tape), *of)  # or it is not the native one that is wrong
        _log.warning("the native replay is left out, please report it: %s", error)
        return None
    return found


def _recorded(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
) -> tuple[Tape, Sequence[Tensor]]:
    """As `record`; what fails only while it is recorded is no error of the user's.

    Raises:
        UncapturableError: it fails, or cannot be recorded. Eager execution then tells.
    """
    try:
        return record(function, tensors)
    except UncapturableError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UncapturableError(f"to record it fails with {error!r:.300}") from error


def _require_no_mode() -> None:
    """Raise UncapturableError where a mode of the user's is active: a replay would pass it by."""
    if mode := modes_around():
        raise UncapturableError(f"a {mode} is active around it")
