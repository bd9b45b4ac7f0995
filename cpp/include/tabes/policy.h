// Unmasking policies: which masked positions to reveal next.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tabes/denoiser.h"
#include "tabes/export.h"

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

// Who says how many rows a step reveals, and when a sequence is done.
enum class Pace {
  quota,     // the schedule: GenerateOptions::steps, LLaDA's division
  adaptive,  // the policy, at least one; steps set no limit and only the quota is derived from them
  timed      // the policy, any number, and it may mask again; a block takes all of its steps
};

class Policy;

// What a policy remembers between the steps of one decode.
class TABES_API PolicyState {
 public:
  virtual ~PolicyState() = default;
};

// What the policies of one decode remember: several where one calls others.
class TABES_API PolicyStates {
 public:
  // What policy.begin() made when it was first asked for; dropped when the policy is gone.
  PolicyState* of(const Policy& policy);

 private:
  struct Entry {
    std::weak_ptr<const int> owner;
    std::unique_ptr<PolicyState> state;
  };
  std::vector<Entry> entries_;
};

// A canvas one step ahead: a sequence in which these of its rows are revealed as predicted.
struct Ahead {
  size_t sequence;              // of StepContext::batch
  std::vector<int64_t> reveal;  // numbers among the eligible rows, increasing; not all of them
};

// What a policy sees of one step.
struct StepContext {
  const Denoiser& model;           // counts in `cost` what it computes
  const PackedBatch& batch;        // the sequences still being decoded, as they are now
  const RowSet& eligible;          // the rows that may be revealed, n of them
  const Predictions& predictions;  // at the eligible rows
  const at::Tensor& features;      // [n, F] of the eligible rows, see Denoiser::encode
  const at::Tensor& forbidden;     // [f] int64: tokens of probability 0
  // Masked rows outside the current blocks and their entropies ([w] real, nats), for policies that
  // want them; empty otherwise.
  const RowSet& waiting;
  const at::Tensor& waiting_entropy;
  Context* context;      // of the forward pass, if the policy asked for it; else null
  PolicyStates& states;  // states.of(*this) is what this policy's begin() made
  // The cost of the step so far. A policy that computes by other means than `model` and
  // `look_ahead` adds its rows.
  Cost& cost;
  // Rows of the current blocks that earlier steps revealed, and each one's probability then
  // ([m] float64 on the CPU). Filled under Pace::timed.
  const RowSet& revealed;
  const at::Tensor& revealed_confidence;
  // For each sequence of `batch`: its place among the caller's sequences, the number its draws are
  // keyed by, its own step counter and number of steps (at most, unless the pace is adaptive), the
  // same within its block, its first position that was masked, and its share of the masks.
  const std::vector<int64_t>& place;
  const std::vector<int64_t>& sequence;
  const std::vector<int64_t>& step;
  const std::vector<int64_t>& steps;
  const std::vector<int64_t>& block_step;
  const std::vector<int64_t>& block_steps;
  const std::vector<int64_t>& first;
  const std::vector<int64_t>& quota;
  uint64_t seed;
  const Poll& poll;
  // Runs the model on canvases one step ahead, all in one pass, and counts its rows. The result
  // has, for each, the predictions at the eligible rows that it leaves masked, in order. If the
  // policy then reveals just these rows, the next step needs no forward pass of its own.
  const std::function<std::vector<Predictions>(const std::vector<Ahead>&)>& look_ahead;
};

// What a policy says of the n eligible rows.
struct Decision {
  Decision() = default;
  Decision(at::Tensor scores) : score(std::move(scores)) {}  // NOLINT: a tensor alone will do

  at::Tensor score;  // [n] real: within a sequence the highest are revealed first
  // How many rows of each sequence are revealed; empty under Pace::quota. Not below 1 under
  // Pace::adaptive. Under Pace::timed the last step of a block reveals everything.
  std::vector<int64_t> count;
  // Rows among StepContext::revealed, increasing, that are masked again; under Pace::timed only,
  // and not in the last step of a block.
  std::vector<int64_t> remask;
  // Where the policy looks ahead: [n] real influence of each row in nats, NaN where it was not
  // computed (undefined: of none), and the probes on which it was, rows of the batch, increasing.
  at::Tensor influence;
  std::vector<int64_t> probes;
};

// The same step as matrices on the model's device, for policies that decide without the host, which
// may then be a step ahead of the device. The eligible rows of sequence b are in row b, by
// position; how many they are only the device knows, so that other rows stand between them: what is
// not `valid` holds numbers without meaning.
struct DeviceStep {
  const Denoiser& model;        // counts what it computes
  const PackedBatch& batch;     // B sequences
  at::Tensor row, position;     // [B, K] int64: in the batch, and in the sequence
  at::Tensor valid;             // [B, K] bool
  Predictions predictions;      // each [B, K]; all but the token float64
  at::Tensor features, place;   // [n, F] and [B, K] int64: of which of its rows each entry is
  const at::Tensor& forbidden;  // as in StepContext
  Context* context;
  at::Tensor eligible, quota;                 // [B] int64: valid entries; masks to reveal
  at::Tensor sequence, first;                 // [B] int64, as in StepContext
  at::Tensor step;                            // [1] int64, the same for all sequences
  at::Tensor steps;                           // [B] int64
  int64_t number;                             // `step`, known to the host
  const std::vector<int64_t>& most_eligible;  // [B]: `eligible` is at most this
  // The quotas are at most these, if no step revealed fewer rows than its quota.
  const std::vector<int64_t>& most_quota;  // [B]
  uint64_t seed;
  const Poll& poll;
};

// See Decision; everything is on the device.
struct DeviceDecision {
  DeviceDecision() = default;
  DeviceDecision(at::Tensor scores) : score(std::move(scores)) {}  // NOLINT: as Decision

  at::Tensor score;      // [B, K] float64
  at::Tensor count;      // [B] int64, as if at most `eligible`; undefined under Pace::quota
  at::Tensor influence;  // [B, K] float64, NaN where it was not computed; undefined: of none
  at::Tensor probe;      // [B, K] bool: whose entropy it is on; undefined: those that have it
};

// What a setting of a policy is: a number, several, or text. Text is read as in make_policy(), so
// that "0.9" is a number as well.
using SettingValue = std::variant<double, int64_t, std::string, std::vector<double>>;

// Settings by name; what is left out has its default.
using PolicySettings = std::vector<std::pair<std::string, SettingValue>>;

// Orders the eligible rows. A policy reads tokens and never writes them; implementations are
// immutable and may be shared between threads: what they remember is in their PolicyState.
class TABES_API Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string name() const = 0;

  // All settings, defaults among them: make_policy(name(), settings()) is the same policy.
  virtual PolicySettings settings() const { return {}; }

  // Ties go to the lowest position; a NaN score is an error.
  virtual Decision decide(const StepContext& context) const = 0;

  virtual Pace pace() const { return Pace::quota; }

  // Under Pace::adaptive: whether no count is below the quota, so that the schedule says how many
  // steps there are at most.
  virtual bool at_least_quota() const { return false; }

  // Whether decide_on_device() is there for this model; not under Pace::timed.
  virtual bool on_device(const Denoiser& model) const {
    (void)model;
    return false;
  }
  // decide() without reading a number on the host: the rows it scores highest are the same.
  virtual DeviceDecision decide_on_device(const DeviceStep& step) const;

  // Called once a decode; null for a policy that remembers nothing.
  virtual std::unique_ptr<PolicyState> begin() const { return nullptr; }

  // Whether decide() will want StepContext::waiting.
  virtual bool wants_waiting() const { return false; }

  // Whether decide() will want StepContext::context, for sequences that have done `step` steps.
  virtual bool wants_context(const std::vector<int64_t>& step) const {
    (void)step;
    return false;
  }

 private:
  friend class PolicyStates;
  // Gone when the policy and its copies are.
  std::shared_ptr<const int> identity_ = std::make_shared<const int>();
};

// A policy by name and settings, in one notation everywhere: "threshold(tau=0.9)" or
// "boe(alpha=0.25, 0.5; n_candidates=3x, context=exact)". Commas and semicolons separate settings
// alike, a part without "=" is one more value of the setting before it, and spaces mean nothing.
// The names, with the settings each takes and their defaults:
//   random
//   confidence      probability of the token to be written (MaskGIT; LLaDA's low_confidence)
//   margin          top two probabilities (Kim et al., arXiv 2502.06768)
//   entropy         least first (Dream)
//   threshold       all with a confidence of at least tau=0.9, one at least (Fast-dLLM)
//   factor          the n most confident, n the largest with c_(r) >= 1 - f / (r + 1) for all
//                   ranks r = 2..n; f=1 (Fast-dLLM)
//   entropy_bound   the k least entropic, k the largest whose entropies but for the largest sum to
//                   at most gamma=0.1 nats (EB-Sampler, arXiv 2505.24857)
//   spread          what `factor` accepts with f = factor=1, and where that is less than the quota
//                   the rest of it by log c less spread=3 * exp(-distance / width=3) for every row
//                   picked before, among the first candidates=2 times the quota: BoE without a
//                   gradient
//   klass           all with a confidence above tau=0.9 whose last history=2 changes of
//                   distribution were below epsilon=0.01 nats (KL), else the quota by confidence
//   info_gain       of candidates=8 sets of the quota's size, the most confident rows and others
//                   drawn by Gumbel noise on c / position_temperature=0.2, the one whose own
//                   entropies plus the mean entropy it leaves are least; everything where all
//                   confidences reach threshold=0.8
//   lookum          paths=2 sets drawn from the pool=5 most certain sets of the quota's size, one
//                   chosen with weight exp(-mean entropy it leaves) (LookUM, arXiv 2511.05563)
//   remdm_cap       rows are masked again with a probability of eta=0.008 at most; remdm_rescale
//                   of eta=0.015 times the largest possible; remdm_conf of softmax(-confidence when
//                   revealed) times it; remdm_loop of eta=0.02 while t_off=0.05 < t <= t_on=0.55,
//                   where the share revealed stays alpha_on=0.9 (ReMDM, arXiv 2503.00307)
//   pc_sampler      c * exp(-decay * position), decay=0.25: PC-Sampler without its corpus term
//   oracle          BoE's score with the true fall of entropy, found by one forward pass for each
//                   of candidates=3 times the quota; gamma=1
//   boe             the options of tabes/boe.h; n_candidates is a number of rows or a multiple of
//                   the quota ("2x"), enumerators are written by their names
//   boe_paper       the same from BoEOptions::paper() on
// Other decoders' low_confidence and maskgit_plus are confidence, topk_margin is margin and eb is
// entropy_bound. Throws InputError, naming policy, setting and value, for a text that is not in
// this notation, another name or setting, one given twice, or a value out of range.
TABES_API std::shared_ptr<const Policy> make_policy(const std::string& notation);

// The same with `settings` behind those in `notation`: as values, or as such a text without
// parentheses: make_policy("boe", {{"alpha", 0.3}}), make_policy("boe", "alpha=0.3").
TABES_API std::shared_ptr<const Policy> make_policy(const std::string& notation,
                                                    const PolicySettings& settings);
TABES_API std::shared_ptr<const Policy> make_policy(const std::string& notation,
                                                    const std::string& text,
                                                    const PolicySettings& settings = {});

// A policy in that notation: with all its settings, so that make_policy() makes exactly this one of
// it, or only those that differ from the defaults.
TABES_API std::string notation(const Policy& policy, bool defaults = true);

// The names make_policy knows.
TABES_API std::vector<std::string> policy_names();

}  // namespace tabes
