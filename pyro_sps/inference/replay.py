"""Programs that a device does again by itself, as CUDA graphs: all kernels of a step are launched by one call.

A graph reads and writes the very memory that it was recorded on. So the tensors that a program changes are those that
it was first called with, one graph for each set of them, and all other arguments are copied into memory of its own. On
a CPU the same lines run with a plain call in place of the graph, which is how they are tested; nothing there gains from
it, and by default only accelerators do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.process import warn_user
from ..data.trees import map_tree

# Kinds of devices whose compiled programs are replayed.
REPLAYED = frozenset({"cuda"})

# Sets of tensors that a program is recorded on; replicas that run one group after another have one a group.
MOST_GRAPHS = 64


def is_replayed(example: Sequence[Any]) -> bool:
    """Whether compiled programs of such arguments are replayed."""
    return next(one.device.type for one in example if isinstance(one, Tensor)) in REPLAYED


def held_of(example: Sequence[Any], changes: int) -> tuple[Any, ...]:
    """Arguments in the layout that a replayed program gets them in: those that it does not change, one piece each."""
    return (*example[:changes], *(_own(one) for one in example[changes:]))


def _own(argument: Any) -> Any:
    return argument.clone(memory_format=torch.contiguous_format) if isinstance(argument, Tensor) else argument


class Replay:
    """A program as one that its device does again by itself.

    Args:
        program: A function of tensors, of fixed shapes, and of the layout of `held_of`.
        changes: Number of arguments, the first ones, that it changes in place.
    """

    def __init__(self, program: Callable[..., Any], changes: int) -> None:
        self.program, self.changes = program, changes
        self.held: list[Any] = []  # arguments that are not changed
        self.copied: list[tuple[Any, int]] = []  # what was copied there last, and which version of it
        self.graphs: dict[tuple[int, ...], tuple[tuple[Tensor, ...], Callable[[], Any]]] = {}
        self.pool: Any = None

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        """What the program does."""
        changed, rest = args[: self.changes], args[self.changes :]
        if not self.held:
            self.held = [_own(one) for one in rest]
            self.copied = [(one, one._version if isinstance(one, Tensor) else 0) for one in rest]
        for place, given in enumerate(rest):
            last, version = self.copied[place]
            if isinstance(given, Tensor) and not (given is last and given._version == version):
                self.held[place].copy_(given)
                self.copied[place] = given, given._version
        key = tuple(tensor.data_ptr() for tensor in changed)
        if key not in self.graphs:
            if len(self.graphs) >= MOST_GRAPHS:
                self.graphs.clear()
            self.graphs[key] = changed, self._recorded(changed)  # kept, so that nothing else comes to their place
        outputs = self.graphs[key][1]()
        for tensor in changed:  # nobody else notes what a device does by itself
            torch.autograd.graph.increment_version(tensor)
        # What comes out is in memory that the next call writes to.
        return map_tree(torch.clone, outputs)

    def _recorded(self, changed: tuple[Tensor, ...]) -> Callable[[], Any]:
        """What does the program once more on these tensors."""
        program, held = self.program, self.held

        def plainly() -> Any:
            return program(*changed, *held)

        device = next(one.device for one in (*changed, *held) if isinstance(one, Tensor))
        if device.type != "cuda":
            return plainly
        try:
            with torch.cuda.device(device):
                return self._graph(changed)
        except RuntimeError as error:
            warn_user(f"the compiled step runs without CUDA graphs: {str(error).splitlines()[0][:200]}", RuntimeWarning)
            self.graphs.clear()
            return plainly

    def _graph(self, changed: tuple[Tensor, ...]) -> Callable[[], Any]:
        """The program as a CUDA graph, after runs on other tensors in which kernels are loaded and chosen."""
        program, held = self.program, self.held
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                program(*(tensor.clone() for tensor in changed), *held)
        torch.cuda.current_stream().wait_stream(aside)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may read data in the meantime.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = program(*changed, *held)

        def again() -> Any:
            graph.replay()
            return outputs

        return again
