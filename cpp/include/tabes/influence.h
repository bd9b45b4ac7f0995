// Token influence scores: how far the entropy of other masked rows falls when a row is revealed.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tabes/denoiser.h"
#include "tabes/export.h"

namespace tabes {

// Which keys and values the inactive rows have in the surrogate forward pass: those of that pass
// (`exact`, the paper's), or those of the base pass (`frozen`), which then computes active rows
// only. At the base state the gradient of the frozen function is ActiveQueryAttention's gradient.
enum class ContextKind { exact, frozen };

// Which rows the adjoint goes through: the active ones (ActiveQueryAttention), or all of them.
enum class AdjointKind { active, dense };

// By name; InputError for another.
TABES_API ContextKind context_kind(const std::string& name);
TABES_API AdjointKind adjoint_kind(const std::string& name);

struct InfluenceOptions {
  // Where between mask (0) and predicted token (1) the entropy is differentiated; the gradients of
  // several points are averaged. The paper's point is 1.
  std::vector<double> alpha{0.5};
  double tau = 1.0;  // the predicted embedding is that of softmax(logits / tau); 0: of the argmax
  int64_t halo = 0;  // rows this close to a candidate or probe are active as well
  ContextKind context = ContextKind::exact;
  AdjointKind adjoint = AdjointKind::active;
  // Token ids left out of every distribution; the mask token always is.
  std::vector<int64_t> forbidden;
  bool allow_special = false;  // keep ModelInfo::special_token_ids, which else are left out as well
  Poll poll;
};

struct Influence {
  // One tensor a sequence, [candidates] float64 on the CPU, in the candidates' order: in nats, the
  // first-order fall of the probes' summed entropy when that candidate is revealed.
  std::vector<at::Tensor> tis;
  // For each sequence the probes' summed entropy in nats: as it is, and with the candidates written
  // as far as alpha says, the mean over the points.
  std::vector<double> entropy, predicted_entropy;
  // For each sequence what its scores are to be multiplied by so that the falls add up to no more
  // than there is: below 1 where the positive ones exceed `entropy`. BoE's rule `nats` does so.
  std::vector<double> scale;
  Cost cost;  // the base pass among it
};

// Token influence scores (TIS) of candidates on probes, TABES (arXiv 2602.00250):
// TIS_i = -<d sum_j H_j / d e_i, e~_i - e_mask>, the gradient being taken where every candidate's
// embedding is e_mask + alpha (e~_i - e_mask). `candidates` and `probes` are masked positions, one
// list a sequence; a position may be both, and its own entropy is then in the sum. Throws
// InputError if a list is empty, holds a position twice, out of range or not masked, if an option
// is out of range, or for a frozen context with a model that has none; NumericsError if the model
// computes NaN; DeviceError if memory runs out.
TABES_API Influence influence(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                              const std::vector<std::vector<int64_t>>& candidates,
                              const std::vector<std::vector<int64_t>>& probes,
                              const InfluenceOptions& options = {});

struct OneStepFall {
  // One tensor a sequence, [candidates] float64 on the CPU, in the candidates' order: in nats, the
  // fall of the probes' summed entropy when the candidate's likeliest token is written.
  std::vector<at::Tensor> fall;
  Cost cost;
};

// What influence() predicts, found out by running the model once for every candidate. Takes and
// refuses the same lists, and positions that are both.
TABES_API OneStepFall one_step_fall(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                                    const std::vector<std::vector<int64_t>>& candidates,
                                    const std::vector<std::vector<int64_t>>& probes,
                                    const std::vector<int64_t>& forbidden = {},
                                    bool allow_special = false, const Poll& poll = {});

}  // namespace tabes
