// The part of influence scores that the policy and the public function share: from sets of rows to
// one score a candidate.
#pragma once

#include "tabes/influence.h"

namespace tabes {

// Throws InputError for an option out of range.
void check(const InfluenceOptions& options);

struct SurrogateRequest {
  const PackedBatch& batch;
  // Those that only fill up their number (RowSet::valid) are not changed and do not count.
  const RowSet& candidates;
  const RowSet& probes;
  // What the candidates become: tokens, or, where these are undefined, the mean embedding of what
  // is predicted from the features.
  at::Tensor tokens;     // [candidates] int64 on the model's device
  at::Tensor features;   // [candidates, F] of the base pass
  at::Tensor forbidden;  // [f] int64 on the model's device, the mask among them
  const InfluenceOptions& options;
  Context* context = nullptr;  // of the base pass; needed for a frozen context only
  bool disjoint = false;       // no row is both a candidate and a probe
};

struct SurrogateScores {
  at::Tensor tis;      // [candidates] float64 on the model's device
  at::Tensor entropy;  // [probes] float64 there, of the changed batch; mean over the points
  Cost cost;           // the base pass not among it
};

// What a sequence's influences are multiplied by so that they can be true. No entropy falls below
// 0, so the falls cannot add up to more than the probes' entropy `there`. First-order falls can:
// `rising` is what the positive ones add up to.
inline double influence_scale(double there, double rising) {
  return rising > there ? there / rising : 1.0;
}

// Sequences without candidates or probes may be in the batch; they cost nothing. Reads nothing on
// the host where the candidates are the probes (the same tensor) or none of them, without a halo
// and in a model whose logits are not shifted.
SurrogateScores surrogate_scores(const Denoiser& model, const SurrogateRequest& request);

}  // namespace tabes
