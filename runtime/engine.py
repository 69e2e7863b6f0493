"""Engine: an open model, its compiled kernels and its buffers; sessions share it, in turn."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import platformdirs

from hga.kvstore.arena import RamArena
from hga.kvstore.cellsums import SumCells, cell_sums, cell_sums_in_numpy
from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.geometry import GROUP_TOKENS
from hga.kvstore.plain_reader import PlainReader
from hga.kvstore.reader import Reader
from hga.kvstore.route import Budget, Router
from hga.kvstore.store import SessionStore
from hga.models.plan import ModelPlan

from . import budget
from .arenas import open_arena
from .compiling import compile_ahead
from .container import ModelFile
from .expert_budget import trunk_bytes
from .expert_reads import ExpertReads
from .options import Options
from .planning import geometry_of, place_model
from .saved import SavedSession, fingerprint, make_store, session_folder
from .session import Session
from .session_types import ContextError

if TYPE_CHECKING:
    from hga.kernels.ops import Backend

    from .cuda_arena import CudaArena
    from .cuda_backend import CudaBackend
    from .experts import ExpertCache
    from .forward import ForwardPass
    from .grammar import GrammarCompiler
    from .template import ChatTemplate
    from .tokenizer import Tokenizer

__all__ = ["ContextError", "Engine", "Session"]


def _open_model(path: Path, notices: list[str]) -> ModelFile:
    """Open with the trunk in memory of its own, or mapped where that would crowd the machine.

    Huge pages make decoding a fifth faster than a mapping of 4 KiB pages (docs/decisions/0003).
    """
    import psutil

    model = ModelFile.open(path)
    trunk, available = trunk_bytes(model), psutil.virtual_memory().available
    if trunk > available // 2:
        notices.append(
            f"weights are mapped from the file, not read: {trunk >> 20} MiB would take more than"
            f" half of the {available >> 20} MiB of free memory"
        )
        return model
    model.close()
    return ModelFile.open(path, load="ram")


class Engine:
    """Opened by `Engine.open`, closed by `close` or a `with` statement."""

    def __init__(
        self,
        path: Path,
        options: Options,
        cache_dir: Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.options = options
        self.path = path
        self._cache_dir = cache_dir or platformdirs.user_cache_path("hga", appauthor=False)
        self.notices: list[str] = []
        # Told what turns out after the notices were there to be read.
        self._report: Callable[[str], None] | None = None
        self.on_card = options.device == "cuda"
        self.model = ModelFile.open(path) if self.on_card else _open_model(path, self.notices)
        try:
            self.plan: ModelPlan = self.model.plan
            self.ctx = options.ctx or self.plan.ctx_train
            if self.ctx > self.plan.ctx_train:
                self.notices.append(
                    f"context {self.ctx} is longer than the {self.plan.ctx_train} tokens that the"
                    " model was trained on: quality is not assured"
                )
            self.geometry = geometry_of(self.plan, options)
            self._note_small_budget()
            self._tokenizer: Tokenizer | None = None
            self._reader: Reader | None = None
            self._plain_reader: PlainReader | None = None
            self.experts: ExpertCache | None = None
            self._template: ChatTemplate | None = None
            self._grammars: GrammarCompiler | None = None
            self.windows = tuple(layer.attention.window for layer in self.plan.layers)
            self._backend: Backend | CudaBackend
            if self.on_card:
                self._open_card()
            else:
                placed = place_model(self.model, self.geometry, self.ctx, options)
                self.placement, self._n_slots = placed.kv, placed.n_slots
                budget.check(self.bill(), options.mem)
                self._open_kernels(report)
        except BaseException:
            self.model.close()
            raise
        self._report = report

    def _note_small_budget(self) -> None:
        options = self.options
        if options.attention == "dense":
            return
        router = Router(options.attention, Budget.parse(options.budget))
        asked, least = router.budget.tokens_at(self.ctx), router.least_tokens(self.ctx)
        # A count is rounded up to whole groups without a word.
        if asked <= least - GROUP_TOKENS:
            self.notices.append(
                f"--budget {options.budget} is at most {asked} tokens: {least} are read (sinks,"
                " window and one group)"
            )

    def _open_kernels(self, report: Callable[[str], None] | None) -> None:
        from hga.kernels import ops

        root = self._cache_dir / "kernels"
        folder, problem = ops.choose_cpu(root)
        if not ops.is_compiled(folder):
            if report is not None:
                report("compiling kernels for this processor (once; about a minute)")
            if problem is None:
                compile_ahead(folder.parent)
        from .forward import ForwardPass
        from .thread_switch import ThreadSwitch
        from .weights import Weights

        self.weights = Weights(self.model, cached_experts=self._n_slots > 0)
        if self.model.is_mapped:
            from hga.kernels.cpu import bus_guard

            bus_guard.install()
        threads = self.options.threads
        self._backend = backend = ops.open_cpu(root, threads)
        self.notices += backend.notices
        try:
            self.forward_pass = ForwardPass(
                self.weights,
                backend,
                self.ctx,
                self.options.sketch_bits,
                ThreadSwitch(backend.n_threads) if threads is None else None,
            )
            if self._n_slots:
                self._open_experts()
        except BaseException:
            self._backend.close()
            if self._reader is not None:
                self._reader.close()
            raise

    def _open_card(self) -> None:
        from .cuda_backend import CudaBackend, require_cuda
        from .cuda_plan import place_on_card

        require_cuda(self.options)
        model, options = self.model, self.options
        plan = place_on_card(model, self.geometry, self.ctx, options)
        self.placement = plan.host
        budget.check(plan.host.bill, options.mem)
        self._backend = card = CudaBackend(model, plan, self.geometry, self.ctx, options)
        self.forward_pass = cast("ForwardPass", card.forward_pass)
        self.notices += card.notices

    def layers_of(self, arena: RamArena | DiskArena) -> Any:
        """What `forward_pass.run` takes for a sequence's layers."""
        from .layer_records import with_cells

        if not self.on_card:
            return with_cells(self.weights.layers, arena)
        return arena.kept if isinstance(arena, DiskArena) else cast("CudaArena", arena).bank

    def _open_experts(self) -> None:
        from .experts import ExpertCache

        # Reading the trunk has left it in the page cache too.
        self.model.drop_page_cache()
        self.experts = ExpertCache(
            self.model, self.weights, self._n_slots, self.reader, self.options.expert_hints
        )
        self.forward_pass.use_cache(self.experts)

    @classmethod
    def open(
        cls,
        path: str | Path,
        options: Options | None = None,
        cache_dir: Path | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Self:
        """Open a packed model.

        cache_dir: where compiled kernels are kept, and keys and values on disk unless the options
        name a folder (default: the user's cache folder). report is
        told what takes long. Raises ContainerError, BudgetError, OSError.
        """
        return cls(Path(path), options or Options(), cache_dir, report)

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, built at first use."""
        if self._tokenizer is None:
            from .tokenizer import Tokenizer

            self._tokenizer = Tokenizer(self.model.tokenizer)
        return self._tokenizer

    @property
    def template(self) -> "ChatTemplate | None":
        """The chat template; None for a base model."""
        if self._template is None and self.model.tokenizer.chat_template:
            from .template import ChatTemplate

            self._template = ChatTemplate(self.model.tokenizer)
        return self._template

    @property
    def grammars(self) -> "GrammarCompiler":
        """What compiles JSON schemas that replies are held to."""
        if self._grammars is None:
            from .grammar import GrammarCompiler

            self._grammars = GrammarCompiler(self.tokenizer)
        return self._grammars

    @property
    def generation(self) -> dict[str, Any]:
        """Sampling defaults that the checkpoint states."""
        return self.model.generation

    @property
    def backend(self) -> str:
        """The execution mode obtained, such as "cpu: avx512, 2 threads"."""
        return self._backend.description

    def bill(self) -> list[budget.BillLine]:
        """What the model takes at the full context, an upper bound item by item."""
        return list(self.placement.bill)

    def resident_bytes(self) -> int:
        """Memory of this process that is in RAM now."""
        import psutil

        return int(psutil.Process().memory_info().rss)

    @property
    def kv_dir(self) -> Path:
        """The folder of keys and values on disk of sessions without a name."""
        return self.options.kv_dir or self._cache_dir / "kv"

    @property
    def sessions_dir(self) -> Path:
        """The folder of named sessions."""
        chosen = self.options.sessions_dir or self.options.kv_dir
        if chosen is not None:
            return chosen
        return platformdirs.user_state_path("hga", appauthor=False) / "sessions"

    def session(
        self,
        name: str | None = None,
        new: bool | None = None,
        attention: str | None = None,
        budget: str | None = None,
    ) -> Session:
        """A new, empty timeline; with a name a durable one, as its last `save` left it.

        new: None opens a named session or makes it, True only makes it, False only opens it.
        attention and budget: others than the engine's. Raises OptionError for a bad name,
        FileNotFoundError, StoreError where it is in use or exists, SessionError where it is
        damaged or does not fit this engine.
        """
        attention = attention or self.options.attention
        budget = budget or self.options.budget
        if name is None:
            return Session(self, self.new_arena(), attention, budget)
        folder = session_folder(self.sessions_dir, name)
        stamp = fingerprint(self, attention, budget, self.options.prefill)
        new = not folder.exists() if new is None else new
        if new:
            store = make_store(self, folder, stamp)
        else:
            store = SessionStore.open(folder, stamp, sum_cells=self.sum_cells)
        try:
            session = Session(self, self.new_arena(store), attention, budget)
        except BaseException:
            store.close()
            raise
        session.saved = SavedSession(self, session, store)
        if not new:
            try:
                session.saved.restore()
            except BaseException:
                session.close()
                raise
        return session

    def save_as(self, session: Session, name: str, note: str = "") -> Session:
        """Save a session under a new name and return the one to go on with: itself, or another in
        its place, which is then for the caller to close. A named one stays as it is under its old
        name. Raises as `session` does."""
        folder = session_folder(self.sessions_dir, name)
        if isinstance(session.arena, DiskArena):
            # Its pages are shared with the new session, which needs a reader of its own.
            saved = session.saved or SavedSession(self, session, session.arena.store)
            saved.save(note if session.saved is None else None)
            notices = saved.store.fork(folder)
            other = self.session(name, False, session.attention, session.budget)
            assert other.saved is not None
            other.saved.notices += notices
            other.save(note)
            return other
        if session.saved is not None:
            session.saved.move_to(folder, note)
            return session
        stamp = fingerprint(self, session.attention, session.budget, session.prefill)
        saved = SavedSession(self, session, make_store(self, folder, stamp))
        try:
            saved.save(note)
        except BaseException:
            saved.close()
            raise
        session.saved = saved
        return session

    @property
    def expert_reads(self) -> ExpertReads:
        """What experts have cost since the engine was opened; nothing where all lie in memory."""
        return self.experts.reads if self.experts is not None else ExpertReads()

    @property
    def reader(self) -> Reader:
        """The reader of experts, keys and values on disk, started at first use."""
        assert not self.on_card
        if self._reader is None:
            self._reader = Reader.open(self.options.io, report=self.note)
            self.forward_pass.connect(self._reader.address)
        return self._reader

    @property
    def plain_reader(self) -> PlainReader:
        """The reader of keys and values on a card's behalf, started at first use."""
        if self._plain_reader is None:
            self._plain_reader = PlainReader(report=self.note)
        return self._plain_reader

    @property
    def io(self) -> str | None:
        """How keys and values on disk are read, such as "threads"; None where none are."""
        reader = self._reader or self._plain_reader
        return reader.mode if reader is not None else None

    def note(self, text: str) -> None:
        """Tell the user something that turned out late."""
        self.notices.append(text)
        if self._report is not None:
            self._report(text)

    def new_arena(self, named: SessionStore | None = None) -> RamArena | DiskArena:
        """An arena over a named session's store, which stays the caller's, or one of its own."""
        return open_arena(self, named)

    @property
    def sum_cells(self) -> SumCells:
        """How the checksums of cells are computed: on a card's behalf without compiled kernels."""
        return cell_sums_in_numpy if self.on_card else cell_sums

    def close(self) -> None:
        """Stop the threads and release the model."""
        self._backend.close()
        for reader in (self._reader, self._plain_reader):
            if reader is not None:
                reader.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
