// The decoding loop.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "tabes/denoiser.h"
#include "tabes/export.h"
#include "tabes/policy.h"

namespace tabes {

// What one step did. The tensors are [k] on the CPU, one entry a revealed token, by sequence and
// position.
struct StepRecord {
  int64_t step = 0;  // counts from 0
  // How many there will be at most: the schedule's, unless the policy keeps to none; then a step
  // for every mask that is left.
  int64_t steps = 0;
  std::vector<int64_t> masked;            // masked positions of every sequence before the step
  std::vector<int64_t> eligible;          // of these, how many could be revealed
  int64_t scored = 0;                     // rows whose influence was computed; else all eligible
  at::Tensor sequence, position, token;   // int64
  at::Tensor confidence, entropy, score;  // float64
  at::Tensor influence;                   // float64: TIS in nats, NaN where it was not computed
  at::Tensor by_confidence;               // bool: confidence alone would have revealed it as well
  at::Tensor remasked_sequence, remasked_position;  // int64 [m]: masked again by the step
  // For every sequence [L] int64: what would be written now at positions that stay masked, -1 at
  // all others. Filled only where a callback watches.
  std::vector<at::Tensor> guesses;
  // For every sequence the fall of its probes' summed entropy, in nats (NaN: not steered): what
  // the influence of the revealed rows adds up to, and what the next step's forward pass showed,
  // over the probes that are eligible then. The latter is filled in one step later.
  std::vector<double> predicted_fall, realised_fall;
  Cost cost;
  double seconds = 0;  // the whole step
  // Of it, inside the model and its statistics; NaN where the host does not see (on_device).
  double model_seconds = 0;
};

// Sees the record and every sequence's tokens (CPU, int64) after each step; false stops decoding.
using StepCallback =
    std::function<bool(const StepRecord& record, const std::vector<at::Tensor>& tokens)>;

struct GenerateOptions {
  // Denoising steps. Each block of a sequence gets an equal share (remainder to the first blocks),
  // and each step of a block an equal share of its masks (remainder to the first steps): LLaDA's
  // quota. Steps that would reveal nothing are not run. Policies of another pace (see Policy) read
  // this differently: adaptive ones take as many steps as they need, timed ones exactly so many.
  int64_t steps = 64;
  // Reveal masks block by block from the left: blocks of this many positions, counted from the
  // sequence's first mask. None: everything at once.
  std::optional<int64_t> block_length;
  // 1: every step is a full forward pass. n: only every n-th is; in the steps between the context
  // is frozen: the rows that were masked before the last step are computed, all others keep the
  // keys and values they had (what the field calls a dual cache). 0: only the first is full. An
  // approximation; models that keep no context are decoded with full passes all the same.
  int64_t refresh_every = 1;
  std::shared_ptr<const Policy> policy;  // none: confidence
  // 0 writes the likeliest token; otherwise tokens are drawn from softmax(logits / temperature)
  // cut to top_k (0: no cut), then top_p. A draw depends only on (seed, sequence, position, step).
  double temperature = 0.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  // Classifier-free guidance: u + (cfg_scale + 1) (c - u) with u the logits of the canvas whose
  // given tokens are masked as well; as probabilities p_c^(cfg_scale + 1) / p_u^cfg_scale. So a
  // token whose c is -inf is never written, and tokens of which only u is -inf come before all
  // others. 0: off; at most 1e9.
  double cfg_scale = 0.0;
  uint64_t seed = 0;
  // The number each sequence's draws are keyed by, 0 or above, all of its bits; none: 0, 1, 2, ...
  // Give a sequence the same number and it is decoded the same way in any batch.
  std::vector<int64_t> sequence_ids;
  std::vector<int64_t> forbidden;       // token ids never written; the mask never is
  bool allow_special = false;           // write ModelInfo::special_token_ids as well
  bool logits_eos_inf = false;          // never write an end-of-text token (LLaDA's name)
  bool confidence_eos_eot_inf = false;  // reveal end-of-text tokens last, at any temperature
  // true: rows are selected on the model's device and the host runs one step ahead of it, so that a
  // GPU never waits for the host. What is revealed is the same; under Pace::adaptive the host works
  // with bounds: steps compute more rows than they need, and a pass may follow the last mask.
  // InputError with guidance, a callback, frozen steps of a model with logit_shift, or a policy
  // that needs the host (Policy::on_device, and Policy::wants_waiting with blocks). None: on a GPU,
  // where it can be, under Pace::quota, for which rows are the same too.
  std::optional<bool> on_device;
  // Passes are recorded as CUDA graphs when a shape comes back, in this decode or a later one of
  // the same model, and replayed from then on; the host then issues one launch a pass. Where rows
  // are selected on the device they are computed in multiples of 32 a sequence, so that shapes do
  // come back. The recordings keep memory until the model is gone or memory runs out. While another
  // decode of the model replays, this one does without. InputError for a model whose passes cannot
  // be recorded: one that is not native, or not on a GPU.
  bool cuda_graphs = false;
  StepCallback callback;
  Poll poll;  // called often during a step; may throw to stop (nothing is returned then)
};

struct GenerateResult {
  std::vector<at::Tensor> tokens;  // every sequence, int64 on the CPU
  std::vector<StepRecord> trace;
  bool finished = true;  // false: the callback stopped it and masks remain
  Cost cost;
  // (cost.forward_rows + cost.backward_rows) / number of tokens in the batch: a row's adjoint, with
  // frozen weights, multiplies as much as its forward pass.
  double forward_equivalents = 0;
  int64_t replayed_passes = 0;  // of the passes, those replayed from a recording (cuda_graphs)
  double seconds = 0;
};

// Fills every mask token of every sequence. `sequences` are 1-D int64 tensors of any lengths with
// mask tokens anywhere; other tokens are never changed. Throws InputError for an argument out of
// range, an empty sequence or batch, one longer than the model allows, a token outside the
// vocabulary or nothing to fill; NumericsError, naming step, sequence and position, if the model
// computes NaN or +inf, or -inf at every token that may be written; DeviceError if memory runs out;
// Error for what else PyTorch fails with. A logit of -inf is a token of probability zero.
TABES_API GenerateResult generate(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                                  const GenerateOptions& options = {});

// `prompt` (1-D int64) followed by gen_length masks: what generate() continues. Throws InputError
// for a prompt of another shape or dtype, or if both together are longer than the model allows.
TABES_API at::Tensor with_masks(const Denoiser& model, const at::Tensor& prompt,
                                int64_t gen_length);

// Logits float32 (float64 for a float64 model) [R, V] at every position of the packed sequences.
TABES_API at::Tensor logits(const Denoiser& model, const std::vector<at::Tensor>& sequences);

}  // namespace tabes
