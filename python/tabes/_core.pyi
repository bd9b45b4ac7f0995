# The compiled module: the C++ library as Python sees it. Dimensions: B sequences of lengths
# L_0..L_{B-1}, R = sum of the lengths, V the vocabulary, D the hidden size, n tokens revealed.
from collections.abc import Callable, Sequence

import torch

from tabes.errors import CheckpointError as CheckpointError
from tabes.errors import DeviceError as DeviceError
from tabes.errors import Error as Error
from tabes.errors import InputError as InputError
from tabes.errors import NumericsError as NumericsError

version: str
built_for_torch: str

class ModelInfo:
    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def mask_token_id(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...

class Denoiser:
    @property
    def info(self) -> ModelInfo: ...
    def logits(self, sequences: list[torch.Tensor]) -> torch.Tensor:
        """B tensors [L_b] int64 -> [R, V] float32, the sequences one after another."""

    def embedding_table(self) -> torch.Tensor:
        """[V, D] in the model's dtype."""

def load(
    directory: str,
    device: str = "cpu",
    dtype: str = "float32",
    mask_token_id: int | None = None,
    prepack: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Denoiser: ...
def module_denoiser(
    function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, list[int]], torch.Tensor],
    embedding_table: torch.Tensor,
    *,
    family: str,
    mask_token_id: int,
    max_length: int,
    num_layers: int,
    parameters: int,
    eos_token_ids: list[int],
    bos_token_id: int | None,
    pad_token_id: int | None,
    logit_shift: bool,
) -> Denoiser:
    """A model made of a table of input embeddings [V, D] and a function.

    The function takes embeddings [B, L, D], tokens [B, L], the active rows of [B * L] (None: all)
    and their offsets by sequence, and returns logits [B, L, V].
    """

class Predictions:
    """What the model predicts at n rows: tensors [n]."""

    @property
    def token(self) -> torch.Tensor: ...
    @property
    def confidence(self) -> torch.Tensor: ...
    @property
    def max_prob(self) -> torch.Tensor: ...
    @property
    def margin(self) -> torch.Tensor: ...
    @property
    def entropy(self) -> torch.Tensor: ...

class StepContext:
    """What a policy sees of a step; valid during Policy.score only."""

    @property
    def tokens(self) -> torch.Tensor: ...
    @property
    def cu_seqlens(self) -> list[int]: ...
    @property
    def rows(self) -> torch.Tensor: ...
    @property
    def cu_rows(self) -> list[int]: ...
    @property
    def predictions(self) -> Predictions: ...
    @property
    def revealed(self) -> torch.Tensor: ...
    @property
    def cu_revealed(self) -> list[int]: ...
    @property
    def revealed_confidence(self) -> torch.Tensor: ...
    @property
    def place(self) -> list[int]: ...
    @property
    def sequence(self) -> list[int]: ...
    @property
    def step(self) -> list[int]: ...
    @property
    def steps(self) -> list[int]: ...
    @property
    def block_step(self) -> list[int]: ...
    @property
    def block_steps(self) -> list[int]: ...
    @property
    def first(self) -> list[int]: ...
    @property
    def quota(self) -> list[int]: ...
    @property
    def seed(self) -> int: ...
    def look_ahead(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[Predictions]:
        """Predictions where eligible rows (their numbers, in order) of a sequence were revealed,
        at the eligible rows that stay masked; one pass over all that is wanted."""

class Decision:
    """What a policy says of the n eligible rows of a step.

    Args:
        score: [n]; within a sequence the highest are revealed first.
        count: how many rows of each sequence are revealed, for the paces "adaptive" and "timed".
        remask: rows among `StepContext.revealed`, in order, to be masked again ("timed" only).
    """

    def __init__(
        self, score: torch.Tensor, count: Sequence[int] = ..., remask: Sequence[int] = ...
    ) -> None: ...
    @property
    def score(self) -> torch.Tensor: ...
    @property
    def count(self) -> list[int]: ...
    @property
    def remask(self) -> list[int]: ...

class Policy:
    """Orders the masked positions; subclasses define name() and score() or decide()."""

    def __init__(self) -> None: ...
    def name(self) -> str: ...
    def pace(self) -> str:
        """Who says how many rows a step reveals: "quota" (the schedule), "adaptive" (the policy, at
        least one) or "timed" (the policy, which may mask again; all steps are taken)."""

    def decide(self, context: StepContext) -> Decision: ...
    def score(self, context: StepContext) -> torch.Tensor:
        """Scores [n] of the eligible rows: within a sequence the highest are revealed first."""

class BoE(Policy):
    """Backward-on-entropy steering (TABES, arXiv 2602.00250): candidates whose revealing most
    lowers the entropy of what stays masked come first.

    A candidate's score is ``gamma * log(c) + weight * TIS``, less
    ``anti_collapse * max(0, h_t - H)**2`` with ``h_t = h_max * steps_left / steps``; c is its
    confidence, H its entropy in nats, TIS its token influence score: how much a draft of all
    candidates agrees with itself because of this one. Rows that `factor` accepts come first, rows
    that are no candidates last, by confidence. A step that the gradient could not change is ordered
    by confidence at no cost, and with weight=0 all of them are.

    Args:
        n_candidates: how many rows get a score each step: a number of rows, or a multiple of the
            rows the step reveals, as "3x".
        prefilter: which they are: the eligible rows first by "confidence" or by "margin".
        alpha: where between mask (0) and prediction (1) the entropy is differentiated; the
            gradients of several points are averaged. The paper's point is 1.
        draft: what a candidate is taken to become: the "token" that would be written, or the
            "expected" embedding, the mean over its distribution, as in the paper.
        tau: temperature of that distribution; 0: the embedding of the likeliest token.
        rule: "nats", as above, or "product", the paper's: ``c**gamma * minmax(TIS)`` in its place.
        gamma: factor of the confidence's logarithm, or its exponent.
        weight: of the influence, with rule "nats".
        factor: above 0: rows that Fast-dLLM's factor rule accepts with this f are revealed in any
            case, unsteered, and may be more than the schedule's quota; the rest is steered.
        spread: rows of one step that stand close together depend on one another; each row picked
            takes ``spread * exp(-distance / spread_width)`` from the scores of the others.
        spread_width: of that, in positions.
        anti_collapse: weight of the penalty on rows that are certain too early.
        h_max: the entropy floor of that penalty at the first step, in nats.
        probes: whose entropy counts: the "candidates" themselves, or other masked rows, those first
            that are "least_entropic", "most_entropic", "random" or "nearest" (to a candidate).
        rho: at most ceil(rho * L) such other rows, L being the length of the whole sequence.
        halo: rows this close to a candidate or probe are active as well.
        context: "frozen": inactive rows keep the keys and values of the step's forward pass;
            "exact": a full surrogate forward pass, as in the paper.
        adjoint: "active": ActiveQueryAttention; "dense": the ordinary gradient.
        every: steer each sequence's every n-th step.
        min_masked: stop steering a sequence with fewer eligible rows.

    Defaults: n_candidates="2x", prefilter="confidence", alpha=0.5, draft="token", tau=1.0,
    rule="nats", gamma=1.0, weight=1.0, factor=1.0, spread=3.0, spread_width=3.0,
    anti_collapse=0.0, h_max=0.3, probes="candidates", rho=1.0, halo=0, context="frozen",
    adjoint="active", every=1, min_masked=0.

    Raises InputError for a value of the wrong kind or out of range, and for an unknown name.
    """

    def __init__(
        self,
        *,
        n_candidates: int | str = ...,
        prefilter: str = ...,
        alpha: float | Sequence[float] = ...,
        tau: float = ...,
        gamma: float = ...,
        anti_collapse: float = ...,
        h_max: float = ...,
        rho: float = ...,
        probes: str = ...,
        halo: int = ...,
        context: str = ...,
        adjoint: str = ...,
        every: int = ...,
        min_masked: int = ...,
        rule: str = ...,
        weight: float = ...,
        factor: float = ...,
        spread: float = ...,
        spread_width: float = ...,
        draft: str = ...,
    ) -> None: ...
    @staticmethod
    def paper() -> BoE:
        """The settings of the paper: alpha = 1, exact context, most entropic probes."""

    @property
    def n_candidates(self) -> int | str: ...
    @property
    def prefilter(self) -> str: ...
    @property
    def alpha(self) -> list[float]: ...
    @property
    def tau(self) -> float: ...
    @property
    def gamma(self) -> float: ...
    @property
    def anti_collapse(self) -> float: ...
    @property
    def h_max(self) -> float: ...
    @property
    def rho(self) -> float: ...
    @property
    def probes(self) -> str: ...
    @property
    def halo(self) -> int: ...
    @property
    def context(self) -> str: ...
    @property
    def adjoint(self) -> str: ...
    @property
    def every(self) -> int: ...
    @property
    def min_masked(self) -> int: ...
    @property
    def rule(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def factor(self) -> float: ...
    @property
    def spread(self) -> float: ...
    @property
    def spread_width(self) -> float: ...
    @property
    def draft(self) -> str: ...

class Influence:
    @property
    def tis(self) -> list[torch.Tensor]: ...
    @property
    def predicted_entropy(self) -> list[float]: ...
    @property
    def forward_rows(self) -> int: ...
    @property
    def backward_rows(self) -> int: ...
    @property
    def head_rows(self) -> int: ...

def influence(
    model: Denoiser,
    sequences: list[torch.Tensor],
    candidates: Sequence[Sequence[int]],
    probes: Sequence[Sequence[int]],
    alpha: Sequence[float],
    tau: float,
    halo: int,
    context: str,
    adjoint: str,
    forbidden: Sequence[int],
) -> Influence: ...
def one_step_fall(
    model: Denoiser,
    sequences: list[torch.Tensor],
    candidates: Sequence[Sequence[int]],
    probes: Sequence[Sequence[int]],
    forbidden: Sequence[int],
) -> list[torch.Tensor]:
    """B tensors [candidates] float64, nats: what influence predicts, by running the model."""

def make_policy(name: str, options: dict[str, float] = ...) -> Policy: ...
def policy_names() -> list[str]: ...

class StepRecord:
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def masked(self) -> list[int]: ...
    @property
    def eligible(self) -> list[int]: ...
    @property
    def scored(self) -> int: ...
    @property
    def sequence(self) -> torch.Tensor: ...
    @property
    def position(self) -> torch.Tensor: ...
    @property
    def token(self) -> torch.Tensor: ...
    @property
    def confidence(self) -> torch.Tensor: ...
    @property
    def entropy(self) -> torch.Tensor: ...
    @property
    def score(self) -> torch.Tensor: ...
    @property
    def influence(self) -> torch.Tensor: ...
    @property
    def by_confidence(self) -> torch.Tensor: ...
    @property
    def remasked_sequence(self) -> torch.Tensor: ...
    @property
    def remasked_position(self) -> torch.Tensor: ...
    @property
    def guesses(self) -> list[torch.Tensor]: ...
    @property
    def predicted_fall(self) -> list[float]: ...
    @property
    def realised_fall(self) -> list[float]: ...
    @property
    def forward_rows(self) -> int: ...
    @property
    def backward_rows(self) -> int: ...
    @property
    def head_rows(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def model_seconds(self) -> float: ...

class GenerateOptions:
    def __init__(self) -> None: ...

    steps: int
    block_length: int | None
    refresh_every: int
    policy: Policy | None
    temperature: float
    top_p: float
    top_k: int
    cfg_scale: float
    seed: int
    sequence_ids: list[int]
    forbidden: list[int]
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool
    on_device: bool | None
    cuda_graphs: bool

class GenerateResult:
    @property
    def tokens(self) -> list[torch.Tensor]: ...
    @property
    def replayed_passes(self) -> int: ...
    @property
    def trace(self) -> list[StepRecord]: ...
    @property
    def forward_equivalents(self) -> float: ...
    @property
    def forward_rows(self) -> int: ...
    @property
    def backward_rows(self) -> int: ...
    @property
    def head_rows(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def finished(self) -> bool: ...

def generate(
    model: Denoiser,
    sequences: list[torch.Tensor],
    options: GenerateOptions,
    callback: Callable[[StepRecord, list[torch.Tensor]], bool | None] | None = None,
) -> GenerateResult: ...
def with_masks(model: Denoiser, prompt: torch.Tensor, gen_length: int) -> torch.Tensor: ...
