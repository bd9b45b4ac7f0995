# The compiled module: the C++ library as Python sees it. Dimensions: B sequences of lengths
# L_0..L_{B-1}, R = sum of the lengths, V the vocabulary, D the hidden size, n tokens revealed.
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tabes.errors import CheckpointError as CheckpointError
from tabes.errors import DeviceError as DeviceError
from tabes.errors import Error as Error
from tabes.errors import InputError as InputError
from tabes.errors import NumericsError as NumericsError

version: str
built_for_torch: str

class ModelInfo:
    """What a model is: `tabes.Model.info`."""

    @property
    def family(self) -> str:
        """The architecture: "llada", "bert", or the wrapped class."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits, V."""

    @property
    def hidden_size(self) -> int:
        """Width of the input embeddings, D."""

    @property
    def num_layers(self) -> int:
        """Transformer layers."""

    @property
    def max_length(self) -> int:
        """The longest sequence that the model was made for, in tokens."""

    @property
    def parameters(self) -> int:
        """Number of weights."""

    @property
    def mask_token_id(self) -> int:
        """The token of positions to fill."""

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a text; may be empty."""

    @property
    def eos_token_id(self) -> int | None:
        """The first of `eos_token_ids`, or None."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, or None."""

    @property
    def pad_token_id(self) -> int | None:
        """The padding token, or None."""

    @property
    def special_token_ids(self) -> list[int]:
        """Tokens that are no part of a text, which are not written unless they are allowed."""

    @property
    def device(self) -> str:
        """Where the weights are, as "cpu" or "cuda:0"."""

    @property
    def dtype(self) -> str:
        """Of weights and computation, as "float32"."""

class Denoiser:
    @property
    def info(self) -> ModelInfo: ...
    def logits(self, sequences: list[torch.Tensor]) -> torch.Tensor:
        """B tensors [L_b] int64 -> [R, V] float32, the sequences one after another."""

    def embedding_table(self) -> torch.Tensor:
        """[V, D] in the model's dtype."""

def load(
    directory: str | bytes,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    mask_token_id: int | None = None,
    eos_token_ids: list[int] | None = None,
    ignore: list[str] = ...,
    prepack: bool = True,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Denoiser: ...

class AddedToken:
    """A token that was added to a vocabulary, with the flags that tokenizers have for it."""

    @property
    def id(self) -> int: ...
    @property
    def content(self) -> str: ...
    @property
    def special(self) -> bool: ...
    @property
    def lstrip(self) -> bool: ...
    @property
    def rstrip(self) -> bool: ...
    @property
    def single_word(self) -> bool: ...
    @property
    def normalized(self) -> bool: ...

class TokenizerSettings:
    """What a tokenizer's files say beside its vocabulary.

    `named_tokens` are by their keys ("mask_token"), `added_tokens` by id; of several chat templates
    `chat_template` is the one called "default". What no file says is None, empty for a class.
    """

    @property
    def named_tokens(self) -> dict[str, str]: ...
    @property
    def additional_special_tokens(self) -> list[str]: ...
    @property
    def added_tokens(self) -> list[AddedToken]: ...
    @property
    def do_lower_case(self) -> bool | None: ...
    @property
    def strip_accents(self) -> bool | None: ...
    @property
    def tokenize_chinese_chars(self) -> bool | None: ...
    @property
    def tokenizer_class(self) -> str: ...
    @property
    def chat_template(self) -> str | None: ...

def checkpoint_folder(directory: str | bytes) -> bytes:
    """The folder in `directory` with a checkpoint: itself, or a snapshot of the hub's cache."""

def read_tokenizer_settings(directory: str | bytes) -> TokenizerSettings:
    """What tokenizer_config.json, special_tokens_map.json and added_tokens.json say.

    Missing files say nothing. Raises CheckpointError naming file and key.
    """

def names_special_token(name: str) -> bool:
    """Whether a token of this name is no text: [UNK], <pad>, </s>, [unused7] and the like."""

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
    special_token_ids: list[int],
    logit_shift: bool,
) -> Denoiser:
    """A model made of a table of input embeddings [V, D] and a function.

    The function takes embeddings [B, L, D], tokens [B, L], the active rows of [B * L] (None: all)
    and their offsets by sequence, and returns logits [B, L, V].
    """

class Predictions:
    """What the model predicts at n rows, on its device.

    Probabilities are those at temperature 1, the mask and forbidden tokens left out.
    """

    @property
    def token(self) -> torch.Tensor:
        """int64 [n]: the token that would be written."""

    @property
    def confidence(self) -> torch.Tensor:
        """[n]: its probability."""

    @property
    def max_prob(self) -> torch.Tensor:
        """[n]: the largest probability."""

    @property
    def margin(self) -> torch.Tensor:
        """[n]: the largest less the second largest probability."""

    @property
    def entropy(self) -> torch.Tensor:
        """[n], nats: entropy of the distribution."""

class StepContext:
    """What a policy sees of one step; valid during decide() and score() only.

    Dimensions: B sequences that are still being decoded, R their tokens one after another (a row is
    a number below R), n rows that may be revealed.
    """

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [R]: the sequences as they stand, on the model's device."""

    @property
    def cu_seqlens(self) -> list[int]:
        """B + 1 numbers: sequence b has the rows cu_seqlens[b] to cu_seqlens[b + 1] - 1."""

    @property
    def rows(self) -> torch.Tensor:
        """int64 [n]: the rows that may be revealed, increasing, on the model's device."""

    @property
    def cu_rows(self) -> list[int]:
        """B + 1 numbers: entries cu_rows[b] to cu_rows[b + 1] - 1 of `rows` are sequence b's."""

    @property
    def predictions(self) -> Predictions:
        """`Predictions` at `rows`."""

    @property
    def features(self) -> torch.Tensor:
        """[n, F]: the model's last hidden states at `rows`, of which `project` makes logits."""

    @property
    def forbidden(self) -> torch.Tensor:
        """int64 [f]: token ids of probability 0, the mask among them."""

    @property
    def waiting(self) -> torch.Tensor:
        """int64 [w]: masked rows of later blocks; empty unless wants_waiting() says True."""

    @property
    def cu_waiting(self) -> list[int]:
        """B + 1 numbers: which of `waiting` are whose, as in cu_rows."""

    @property
    def waiting_entropy(self) -> torch.Tensor:
        """[w], nats: entropies of the predictions at `waiting`."""

    @property
    def has_context(self) -> bool:
        """Whether the pass's keys and values are there, for a built-in policy that is called with
        this step: where wants_context() says True and the model keeps them."""

    @property
    def revealed(self) -> torch.Tensor:
        """int64 [m]: rows of the current blocks that earlier steps revealed; pace "timed" only."""

    @property
    def cu_revealed(self) -> list[int]:
        """B + 1 numbers: which of `revealed` are whose, as in cu_rows."""

    @property
    def revealed_confidence(self) -> torch.Tensor:
        """float64 [m]: the probability of each of `revealed` when it was revealed."""

    @property
    def place(self) -> list[int]:
        """B numbers: which of the caller's sequences each is."""

    @property
    def sequence(self) -> list[int]:
        """B numbers: by which each one's draws are keyed (`sequence_ids`)."""

    @property
    def step(self) -> list[int]:
        """B numbers: steps that each has done."""

    @property
    def steps(self) -> list[int]:
        """B numbers: steps that each gets, at most; no bound under pace "adaptive"."""

    @property
    def block_step(self) -> list[int]:
        """B numbers: steps that each has done in its current block."""

    @property
    def block_steps(self) -> list[int]:
        """B numbers: steps that each gets in its current block."""

    @property
    def first(self) -> list[int]:
        """B positions: each one's first that was masked at the start."""

    @property
    def quota(self) -> list[int]:
        """B numbers: rows that the schedule reveals of each in this step."""

    @property
    def seed(self) -> int:
        """The seed of all draws."""

    def look_ahead(self, wanted: Sequence[tuple[int, Sequence[int]]]) -> list[Predictions]:
        """Predictions where eligible rows (their numbers, in order) of a sequence were revealed,
        at the eligible rows that stay masked; one pass over all that is wanted."""

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [k, V] in the model's dtype of features [k, F], which count as rows of the
        head."""

    def count(self, *, forward_rows: int = 0, backward_rows: int = 0, head_rows: int = 0) -> None:
        """Adds rows to what the step has cost, computed otherwise than through this context and the
        policies that it is passed to; those count by themselves."""

class Decision:
    """What a policy says of the n eligible rows of a step.

    Args:
        score: [n]; within a sequence the highest are revealed first.
        count: how many rows of each sequence are revealed, for the paces "adaptive" and "timed".
        remask: rows among `StepContext.revealed`, in order, to be masked again ("timed" only).
        influence: [n], nats: what revealing each row does to the entropy of the probes; NaN where
            it was not computed. It goes into the records.
        probes: the rows whose entropy that is, increasing.
    """

    def __init__(
        self,
        score: torch.Tensor,
        count: Sequence[int] = ...,
        remask: Sequence[int] = ...,
        influence: torch.Tensor | None = None,
        probes: Sequence[int] = ...,
    ) -> None: ...
    @property
    def score(self) -> torch.Tensor:
        """[n]: within a sequence the highest are revealed first."""

    @property
    def count(self) -> list[int]:
        """B numbers: rows revealed of each sequence; empty under pace "quota"."""

    @property
    def remask(self) -> list[int]:
        """Rows that are masked again, increasing."""

    @property
    def influence(self) -> torch.Tensor | None:
        """[n], nats, NaN where it was not computed; None: of no row."""

    @property
    def probes(self) -> list[int]:
        """Rows whose entropy the influence is on, increasing."""

class Policy:
    """Orders the masked positions.

    Subclasses define name() and score(context) or decide(context), and what else they want to. One
    that calls another policy passes on its `StepContext`: what that one computes is counted.
    """

    def __init__(self) -> None: ...
    def name(self) -> str:
        """By which the policy is made and recorded."""

    def settings(self) -> dict[str, Any]:
        """Every setting by name, defaults among them. Trace files keep them."""

    def notation(self) -> str:
        """``name(setting=value, ...)`` with every setting; `tabes.make_policy` reads it."""

    def pace(self) -> str:
        """Who says how many rows a step reveals: "quota" (the schedule), "adaptive" (the policy, at
        least one) or "timed" (the policy, which may mask again; all steps are taken)."""

    def wants_waiting(self) -> bool:
        """Whether decide() will want `StepContext.waiting`. By default: whether a policy does that
        is an attribute of this one, or in a list, tuple or dict that is."""

    def wants_context(self, step: Sequence[int]) -> bool:
        """Whether decide() will want the keys and values of the step's pass, for sequences that
        have done `step` steps: `tabes.BoE` with context="frozen" does. By default as for
        wants_waiting()."""

    def decide(self, context: StepContext) -> Decision:
        """What this policy says of the step: a `Decision`."""

    def score(self, context: StepContext) -> torch.Tensor:
        """Scores [n] of the eligible rows: within a sequence the highest are revealed first."""

class BoE(Policy):
    """Backward-on-entropy steering (TABES, arXiv 2602.00250): candidates whose revealing most
    lowers the entropy of what stays masked come first.

    A candidate's score is ``gamma * log(c) + weight * TIS``, less
    ``anti_collapse * max(0, h_t - H)**2`` with ``h_t = h_max * steps_left / steps``; c is its
    confidence, H its entropy in nats, TIS its token influence score: how much a draft of all
    candidates agrees with itself because of this one. Entropy falls no further than to 0: where
    positive scores of a sequence add up to more than the probes' entropy, all are scaled down to
    it. Rows that `factor` accepts come first, rows that are no candidates last, by confidence. A
    step that the gradient could not change is ordered by confidence at no cost. With weight=0 all
    are.

    Args:
        n_candidates: how many rows get a score each step: a number of rows, or a multiple of the
            rows the step reveals, as "3x".
        prefilter: which they are: the eligible rows first by "confidence" or by "margin".
        alpha: where between mask (0) and prediction (1) the entropy is differentiated; the
            gradients of several points are averaged. The paper's point is 1.
        draft: what a candidate is taken to become: the "token" that would be written, or the
            "expected" embedding, the mean over its distribution, as in the paper.
        tau: temperature of that distribution; 0: the embedding of the likeliest token.
        rule: "nats", as above, or "product", the paper's: ``c**gamma * minmax(TIS)`` in its place,
            with TIS as it is.
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
    """Token influence scores, from `tabes.influence`."""

    @property
    def tis(self) -> list[torch.Tensor]:
        """A float64 tensor [candidates] for every sequence, in the candidates' order: in nats, the
        first-order fall of the probes' summed entropy when that candidate is revealed."""

    @property
    def entropy(self) -> list[float]:
        """For every sequence the probes' summed entropy in nats, as it is."""

    @property
    def scale(self) -> list[float]:
        """For every sequence what its scores are to be multiplied by so that the falls add up to
        no more than `entropy`; at most 1. The rule "nats" of `tabes.BoE` does so."""

    @property
    def predicted_entropy(self) -> list[float]:
        """For every sequence the probes' summed entropy in nats, with the candidates written as far
        as alpha says; the mean over its points."""

    @property
    def forward_rows(self) -> int:
        """Token rows through the model, the base pass among them."""

    @property
    def backward_rows(self) -> int:
        """Token rows through its adjoint."""

    @property
    def head_rows(self) -> int:
        """Token rows through the vocabulary projection."""

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
    allow_special: bool = False,
) -> Influence: ...
def one_step_fall(
    model: Denoiser,
    sequences: list[torch.Tensor],
    candidates: Sequence[Sequence[int]],
    probes: Sequence[Sequence[int]],
    forbidden: Sequence[int],
    allow_special: bool = False,
) -> list[torch.Tensor]:
    """B tensors [candidates] float64, nats: what influence predicts, by running the model."""

def make_policy(notation: str, text: str = "", settings: dict[str, Any] = ...) -> Policy:
    """A policy from its notation, with more settings as such a text and by name."""

def policy_names() -> list[str]: ...

class StepRecord:
    """What one step did.

    Dimensions: B sequences of the batch, L positions of a sequence, k tokens that were revealed, by
    sequence and position. Tensors are on the CPU.
    """

    @property
    def step(self) -> int:
        """Number of the step, from 0."""

    @property
    def steps(self) -> int:
        """How many there will be at most."""

    @property
    def masked(self) -> list[int]:
        """B numbers: masked positions of every sequence before the step."""

    @property
    def eligible(self) -> list[int]:
        """B numbers: of these, how many could be revealed; the others are in later blocks."""

    @property
    def scored(self) -> int:
        """Rows whose influence was computed; without a gradient all that were eligible."""

    @property
    def sequence(self) -> torch.Tensor:
        """int64 [k]: the sequence of each revealed token."""

    @property
    def position(self) -> torch.Tensor:
        """int64 [k]: its position there."""

    @property
    def token(self) -> torch.Tensor:
        """int64 [k]: the token."""

    @property
    def confidence(self) -> torch.Tensor:
        """float64 [k]: its probability."""

    @property
    def entropy(self) -> torch.Tensor:
        """float64 [k], nats: entropy of the prediction that it was taken from."""

    @property
    def score(self) -> torch.Tensor:
        """float64 [k]: what the policy gave it."""

    @property
    def influence(self) -> torch.Tensor:
        """float64 [k], nats: its token influence score, NaN where it was not computed."""

    @property
    def by_confidence(self) -> torch.Tensor:
        """bool [k]: whether confidence alone would have revealed it as well."""

    @property
    def remasked_sequence(self) -> torch.Tensor:
        """int64 [m]: sequences of the positions that the step masked again."""

    @property
    def remasked_position(self) -> torch.Tensor:
        """int64 [m]: those positions."""

    @property
    def guesses(self) -> list[torch.Tensor]:
        """B tensors int64 [L]: what would be written now at positions that stay masked, -1 at all
        others; an empty list without a callback."""

    @property
    def predicted_fall(self) -> list[float]:
        """B numbers, nats: the influence of the revealed rows together; NaN: not steered."""

    @property
    def realised_fall(self) -> list[float]:
        """B numbers, nats: how far the probes' summed entropy fell by the next step's forward pass;
        NaN: not steered, or there is none yet."""

    @property
    def forward_rows(self) -> int:
        """Token rows through the model, all passes counted."""

    @property
    def backward_rows(self) -> int:
        """Token rows through its adjoint."""

    @property
    def head_rows(self) -> int:
        """Token rows through the vocabulary projection."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of the step."""

    @property
    def model_seconds(self) -> float:
        """Of it, seconds inside the model and its statistics; NaN where the host does not see."""

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
    allow_special: bool
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
