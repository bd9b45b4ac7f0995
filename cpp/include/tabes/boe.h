// Backward-on-entropy steering: reveal first what most lowers the entropy of what stays masked.
#pragma once

#include <vector>

#include "tabes/export.h"
#include "tabes/influence.h"
#include "tabes/policy.h"

namespace tabes {

enum class Prefilter { confidence, margin };

// Whose entropy the influence is on.
enum class ProbeRule {
  candidates,  // the candidates themselves: does a draft of all of them agree with itself?
  // Other masked rows, those first that are
  least_entropic,  // the rows to be decided next
  most_entropic,   // the paper's code
  random,
  nearest  // to a candidate, by position
};

// What a candidate is taken to become.
enum class DraftKind {
  token,    // the token that would be written
  expected  // the mean embedding of its distribution at tau, the paper's
};

enum class ScoreRule {
  product,  // c^gamma * minmax(TIS), the paper's
  nats      // gamma * log c + weight * TIS
};

struct TABES_API BoEOptions {
  // Candidates of a step: the eligible rows that come first by the prefilter. A number of them,
  // or, if `per_quota`, that multiple (rounded up) of the rows the step reveals.
  double n_candidates = 2;
  bool per_quota = true;
  Prefilter prefilter = Prefilter::confidence;
  std::vector<double> alpha{0.5};  // see InfluenceOptions
  DraftKind draft = DraftKind::token;
  double tau = 1.0;  // under DraftKind::expected
  ScoreRule rule = ScoreRule::nats;
  double gamma = 1.0;   // weight of the confidence: its exponent, or the factor of its logarithm
  double weight = 1.0;  // of the influence, under ScoreRule::nats
  // Above 0: the rows that Fast-dLLM's factor rule (arXiv 2505.22618) accepts with this f are
  // revealed in any case, unsteered, and may be more than the schedule's quota; the influence
  // orders the rest.
  double factor = 1.0;
  // Rows of one step that stand close together depend on one another. Of the rows picked so far,
  // each takes spread * exp(-distance in positions / spread_width) from the score of the others.
  double spread = 3.0;
  double spread_width = 3.0;
  double anti_collapse = 0.0;  // lambda, weight of the penalty below
  // The penalty's entropy floor in nats at the first step; it falls to 0 in proportion to the
  // steps left.
  double h_max = 0.3;
  // At most ceil(rho * L) probes other than candidates, L being the length of the whole sequence.
  double rho = 1.0;
  ProbeRule probes = ProbeRule::candidates;
  int64_t halo = 0;
  ContextKind context = ContextKind::frozen;
  AdjointKind adjoint = AdjointKind::active;
  int64_t every = 1;       // steer each sequence's every n-th step, from its first
  int64_t min_masked = 0;  // stop steering a sequence with fewer eligible rows than this

  // Whether the score holds an influence, which takes a gradient.
  bool uses_influence() const { return rule == ScoreRule::product || weight > 0; }
  InfluenceOptions influence() const;

  // The settings of the paper: one gradient at alpha = 1, exact context, most entropic probes.
  static BoEOptions paper();

  // These options with some of them set by name; see make_policy(). Throws InputError for a name
  // that is none of theirs and for a value of another kind.
  BoEOptions with(const PolicySettings& settings) const;
  // All of them by name.
  PolicySettings settings() const;
};

// BoE steering (TABES, arXiv 2602.00250). A candidate's score is
//   gamma * log c + weight * TIS - anti_collapse * max(0, h_t - H)^2,
//   h_t = h_max * steps left / steps,
// with c its confidence and H its entropy; under ScoreRule::product the first two terms are
// c^gamma * minmax(TIS), the paper's, with minmax the scaling of the candidates' influence to
// [0, 1] within their sequence (1 for all where they are equal). Rows that `factor` accepts come
// before the candidates and all other eligible rows after them, by confidence. Probes are the
// candidates themselves, or masked rows that are none, later blocks' among them. A sequence without
// probes, or with no more candidates than rows to reveal, is ordered by confidence at no cost,
// since influence could change nothing. Without StepContext::context, which a model may not keep
// (ModuleDenoiser) and a policy that calls this one has to ask for, a frozen context is replaced by
// the exact one.
class TABES_API BoE : public Policy {
 public:
  // Throws InputError for an option out of range.
  explicit BoE(BoEOptions options = {});

  std::string name() const override { return "boe"; }
  PolicySettings settings() const override { return options_.settings(); }
  Decision decide(const StepContext& context) const override;
  // Where influence is asked for: without a halo, in a native model whose logits are not shifted,
  // and with probes other than the candidates only at factor 0.
  bool on_device(const Denoiser& model) const override;
  DeviceDecision decide_on_device(const DeviceStep& step) const override;
  Pace pace() const override { return options_.factor > 0 ? Pace::adaptive : Pace::quota; }
  bool at_least_quota() const override { return true; }
  bool wants_waiting() const override { return options_.probes != ProbeRule::candidates; }
  bool wants_context(const std::vector<int64_t>& step) const override;
  const BoEOptions& options() const { return options_; }

 private:
  BoEOptions options_;
};

}  // namespace tabes
