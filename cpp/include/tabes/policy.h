// Unmasking policies: which masked positions to reveal next.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tabes/denoiser.h"

namespace tabes {

// What the model predicts at n rows. All tensors are [n] on the model's device; probabilities are
// of the untempered distribution in which the mask and every forbidden token have probability 0.
struct Predictions {
  at::Tensor token;       // int64: the token that would be written
  at::Tensor confidence;  // real: its probability
  at::Tensor max_prob;    // real: the largest probability
  at::Tensor margin;      // real: largest minus second largest
  at::Tensor entropy;     // real: nats
};

// What a policy sees of one step.
struct StepContext {
  const Denoiser& model;
  const PackedBatch& batch;        // the sequences still being decoded, as they are now
  const RowSet& eligible;          // the rows that may be revealed, n of them
  const Predictions& predictions;  // at the eligible rows
  const at::Tensor& features;      // [n, F] of the eligible rows, see Denoiser::encode
  const at::Tensor& forbidden;     // [f] int64: tokens of probability 0
  Context* context;                // of the forward pass, if the policy asked for it; else null
  // For each sequence of `batch`: its number among the caller's sequences, its own step counter
  // and number of steps, and how many rows this step reveals.
  const std::vector<int64_t>& sequence;
  const std::vector<int64_t>& step;
  const std::vector<int64_t>& steps;
  const std::vector<int64_t>& quota;
  uint64_t seed;
  const Poll& poll;
};

// What a policy says of the n eligible rows, and what it cost beside the step's forward pass.
struct Scores {
  Scores() = default;
  Scores(at::Tensor scores) : score(std::move(scores)) {}  // NOLINT: a tensor alone will do

  at::Tensor score;  // [n] real: within a sequence the highest are revealed first
  // Where the policy looks ahead: [n] real influence of each row in nats, NaN where it was not
  // computed, and [n] bool, the probes on which it was. Undefined otherwise.
  at::Tensor influence, probes;
  int64_t forward_rows = 0, backward_rows = 0, head_rows = 0;
};

// Orders the eligible rows. A policy reads tokens and never writes them; implementations are
// immutable and may be shared between threads.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string name() const = 0;

  // Ties go to the lowest position; a NaN score is an error.
  virtual Scores score(const StepContext& context) const = 0;

  // Whether score() will want StepContext::context, for sequences that have done `step` steps.
  virtual bool wants_context(const std::vector<int64_t>& step) const {
    (void)step;
    return false;
  }
};

// "random", "confidence" (probability of the token to be written; MaskGIT, LLaDA's
// low_confidence), "margin" (top two probabilities; Kim et al., arXiv 2502.06768), "entropy"
// (least first; Dream), or "boe" and "boe_paper" (tabes/boe.h). Throws InputError for another name.
std::shared_ptr<const Policy> make_policy(const std::string& name);

// The names make_policy knows.
std::vector<std::string> policy_names();

}  // namespace tabes
