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
  // For each sequence of `batch`: its number among the caller's sequences, its own step counter
  // and number of steps, and how many rows this step reveals.
  const std::vector<int64_t>& sequence;
  const std::vector<int64_t>& step;
  const std::vector<int64_t>& steps;
  const std::vector<int64_t>& quota;
  uint64_t seed;
};

// Orders the eligible rows. A policy reads tokens and never writes them; implementations are
// immutable and may be shared between threads.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string name() const = 0;

  // Scores [n], real, of the eligible rows: within a sequence the highest are revealed first, ties
  // go to the lowest position. NaN is an error.
  virtual at::Tensor score(const StepContext& context) const = 0;
};

// "random", "confidence" (probability of the token to be written; MaskGIT, LLaDA's
// low_confidence), "margin" (top two probabilities; Kim et al., arXiv 2502.06768) or "entropy"
// (least first; Dream). Throws InputError for another name.
std::shared_ptr<const Policy> make_policy(const std::string& name);

// The names make_policy knows.
std::vector<std::string> policy_names();

}  // namespace tabes
