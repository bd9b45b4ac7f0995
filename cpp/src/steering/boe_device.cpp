// BoE's decision without the host: boe.cpp on matrices. Candidates of a sequence are the first
// columns of a row; what a step may need of them at most is known beforehand.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "batch/device_select.h"
#include "ops/ops.h"
#include "steering/surrogate.h"
#include "tabes/boe.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Some of a step's entries, by their columns [B, C]; past all columns where there is none any more.
struct Columns {
  at::Tensor column;
  at::Tensor is_one;  // bool: the others only fill up the number

  // Theirs of a matrix [B, K], and [B, C] of theirs in a matrix [B, width] of zeros.
  at::Tensor of(const at::Tensor& matrix) const {
    return matrix.gather(1, column.clamp_max(matrix.size(1) - 1));
  }
  at::Tensor spread(const at::Tensor& values, int64_t width) const {
    // Columns past the others keep what fills up the number off them.
    return at::zeros({values.size(0), width + column.size(1)}, values.options())
        .scatter_(1, column, values)
        .narrow(1, 0, width);
  }
};

// The candidates of a step.
struct Candidates : Columns {
  at::Tensor sure;  // bool: taken by its confidence alone

  // `values` [B, C] of these entries, in a matrix [B, K] that elsewhere is `other`.
  at::Tensor into(const at::Tensor& other, const at::Tensor& entries,
                  const at::Tensor& values) const {
    const int64_t width = other.size(1);
    return at::where(spread(entries, width), spread(values, width), other);
  }
};

// The scores of boe_scores(), with the influence 0 where it was not computed.
at::Tensor scores_of(const DeviceStep& step, const BoEOptions& o, const Candidates& candidates,
                     const at::Tensor& influence) {
  const at::Tensor confidence = candidates.of(step.predictions.confidence);
  at::Tensor first;
  if (o.rule == ScoreRule::product) {
    const auto edge = [&](double other) { return at::where(candidates.is_one, influence, other); };
    const at::Tensor low = edge(kInfinity).amin(1, true),
                     width = edge(-kInfinity).amax(1, true) - low;
    first = confidence.pow(o.gamma) * at::where(width.eq(0), 1.0, (influence - low) / width);
  } else {
    first = o.gamma * confidence.clamp_min(1e-300).log() + o.weight * influence;
  }
  if (o.anti_collapse == 0) return first;
  const at::Tensor left = (step.steps - step.step).to(at::kDouble) / step.steps;
  const at::Tensor below =
      ((o.h_max * left).unsqueeze(1) - candidates.of(step.predictions.entropy)).clamp_min(0);
  return first - o.anti_collapse * below * below;
}

// Takes from the scores what rows that are picked before them cost; `sure` [B, K] are all rows that
// are taken by confidence, `open` [B] the rows that are then picked, `most` of them at most.
void spread_out(const DeviceStep& step, const BoEOptions& o, const Candidates& candidates,
                const at::Tensor& sure, const at::Tensor& open, int64_t most, at::Tensor& scores) {
  const at::Tensor position = candidates.of(step.position).to(at::kDouble);
  const auto near = [&](const at::Tensor& from, const at::Tensor& to) {
    return o.spread * ((from - to).abs() / -o.spread_width).exp();
  };
  at::Tensor picked = candidates.sure;
  const at::Tensor by_sure =
      near(step.position.to(at::kDouble).unsqueeze(2), position.unsqueeze(1));
  scores = scores -
           at::where(sure.unsqueeze(2) & picked.bitwise_not().unsqueeze(1), by_sure, 0.0).sum(1);
  const int64_t count = scores.size(1);
  const at::Tensor column = at::arange(count, step.row.options());
  for (int64_t k = 0; k < most; ++k) {
    const at::Tensor free = candidates.is_one & picked.bitwise_not();
    const at::Tensor known = at::where(free, scores, -kInfinity);
    const at::Tensor first =
        at::where(known.eq(known.amax(1, true)) & free, column, count).amin(1, true);
    const at::Tensor one = column.eq(first) & open.gt(k).unsqueeze(1);
    picked = picked | one;
    const at::Tensor at = at::where(one, position, 0.0).sum(1, true);
    scores =
        at::where(picked.bitwise_not() & one.any(1, true), scores - near(at, position), scores);
  }
}

// Probes beside the candidates.
struct Probes : Columns {
  Ragged shape;
};

// How early each entry becomes a probe; [B, K].
at::Tensor probe_rank(const DeviceStep& step, const BoEOptions& o, const Candidates& candidates) {
  switch (o.probes) {
    case ProbeRule::candidates:
      break;
    case ProbeRule::least_entropic:
      return -step.predictions.entropy;
    case ProbeRule::most_entropic:
      return step.predictions.entropy;
    case ProbeRule::random: {
      const auto flat = [&](const at::Tensor& t) {
        return t.expand_as(step.position).contiguous().view(-1);
      };
      return ops::counter_uniforms(flat(step.sequence.unsqueeze(1)), flat(step.position),
                                   flat(step.step), step.seed, Stream::probe)
          .view_as(step.position);
    }
    case ProbeRule::nearest: {
      const auto far = std::numeric_limits<int64_t>::max();
      const at::Tensor distance =
          (step.position.unsqueeze(2) - candidates.of(step.position).unsqueeze(1)).abs();
      return at::where(candidates.is_one.unsqueeze(1), distance, far).amin(2).neg().to(at::kDouble);
    }
  }
  TORCH_INTERNAL_ASSERT(false, "no rule that ranks rows");
}

// Beside candidates that are as many as can be, `most` of each sequence.
Probes probes_beside(const DeviceStep& step, const BoEOptions& o, const Candidates& candidates,
                     const std::vector<int64_t>& most) {
  std::vector<int64_t> counts;
  for (size_t b = 0; b < most.size(); ++b) {
    const int64_t length = step.batch.cu_seqlens[b + 1] - step.batch.cu_seqlens[b];
    const auto wanted = static_cast<int64_t>(std::ceil(o.rho * static_cast<double>(length)));
    counts.push_back(most[b] == 0 ? 0 : std::min(wanted, step.most_eligible[b] - most[b]));
  }
  const int64_t width = std::max<int64_t>(1, *std::max_element(counts.begin(), counts.end()));
  Probes probes{{}, Ragged(counts, width, step.row.device())};
  const int64_t all = step.row.size(1);
  const at::Tensor is_candidate = candidates.spread(at::ones_like(candidates.is_one), all);
  const at::Tensor rest = step.valid & is_candidate.bitwise_not();
  const at::Tensor rank = rank_by(probe_rank(step, o, candidates), rest);
  // Where rows are too few others fill up the number, but never candidates.
  probes.column = leading(at::where(is_candidate, rank + all, rank), probes.shape);
  probes.is_one = probes.of(rest) & probes.shape.inside();
  return probes;
}

}  // namespace

bool BoE::on_device(const Denoiser& model) const {
  const BoEOptions& o = options_;
  if (!o.uses_influence()) return true;
  // How many rows `factor` leaves over is not known beforehand, so neither is which are probes.
  return (o.probes == ProbeRule::candidates || o.factor == 0) && o.halo == 0 &&
         !model.info().logit_shift && model.keeps_context();
}

DeviceDecision BoE::decide_on_device(const DeviceStep& step) const {
  const BoEOptions& o = options_;
  const Predictions& p = step.predictions;
  const at::Tensor ranks = rank_by(p.confidence, step.valid);
  const at::Tensor sure_count = o.factor > 0 ? within_factor(p.confidence, step.valid, o.factor)
                                             : at::zeros_like(step.eligible);
  const at::Tensor sure = ranks.lt(sure_count.unsqueeze(1)) & step.valid;
  const at::Tensor reveals = at::maximum(sure_count, step.quota);
  const auto asked = [&](double reveal) {
    return o.per_quota ? std::ceil(o.n_candidates * reveal) : o.n_candidates;
  };
  at::Tensor wanted = o.per_quota
                          ? (o.n_candidates * reveals.to(at::kDouble)).ceil()
                          : at::full(reveals.sizes(), o.n_candidates, p.confidence.options());
  wanted = at::minimum(wanted, step.eligible.to(at::kDouble)).to(at::kLong);
  const at::Tensor chooses = wanted.gt(reveals) & reveals.gt(sure_count);

  std::vector<int64_t> most, most_steered;
  int64_t most_open = 0;
  bool asks = false;  // for influence
  for (size_t b = 0; b < step.most_eligible.size(); ++b) {
    // Where there is a choice, the quota is what is revealed.
    const auto quota = static_cast<double>(step.most_quota[b]);
    const double bound = std::min(static_cast<double>(step.most_eligible[b]), asked(quota));
    const bool no_choice = o.factor == 0 && bound <= quota;
    most.push_back(no_choice ? 0 : static_cast<int64_t>(bound));
    const bool probed = o.probes == ProbeRule::candidates || most.back() < step.most_eligible[b];
    most_steered.push_back(step.most_eligible[b] < o.min_masked || !probed ? 0 : most.back());
    asks = asks || most_steered.back() > 0;
    most_open = std::max(most_open, step.most_quota[b]);
  }
  const int64_t width = std::max<int64_t>(1, *std::max_element(most.begin(), most.end()));
  const Ragged shape(most, width, step.row.device());
  const at::Tensor filter =
      o.prefilter == Prefilter::margin ? rank_by(p.margin, step.valid) : ranks;
  Candidates candidates;
  candidates.column = leading(filter, shape);
  candidates.is_one = candidates.of(filter).lt(wanted.unsqueeze(1)) & candidates.of(step.valid) &
                      shape.inside() & chooses.unsqueeze(1);
  candidates.sure = candidates.of(sure) & shape.inside();

  DeviceDecision result;
  if (o.factor > 0) result.count = reveals;
  at::Tensor influence = at::full(candidates.column.sizes(), 0.0, p.confidence.options());
  at::Tensor applies = chooses;
  if (o.uses_influence() && step.number % o.every == 0 && asks) {
    const Ragged steered_shape =
        most_steered == most ? shape : Ragged(most_steered, width, step.row.device());
    at::Tensor steered = chooses & step.eligible.ge(o.min_masked);
    // Then some row is left to be a probe.
    if (o.probes != ProbeRule::candidates) steered = steered & wanted.lt(step.eligible);
    const at::Tensor real = candidates.is_one & steered.unsqueeze(1);
    const RowSet rows{steered_shape.pack(candidates.of(step.row)), steered_shape.cu(),
                      steered_shape.pack(real)};
    RowSet probes = rows;
    const Ragged* probe_shape = &steered_shape;
    std::optional<Probes> apart;
    at::Tensor there = at::where(real, candidates.of(p.entropy), 0.0);
    if (o.probes != ProbeRule::candidates) {
      apart = probes_beside(step, o, candidates, most_steered);
      probe_shape = &apart->shape;
      const at::Tensor is_one = apart->is_one & steered.unsqueeze(1);
      probes = {probe_shape->pack(apart->of(step.row)), probe_shape->cu(),
                probe_shape->pack(is_one)};
      there = at::where(is_one, apart->of(p.entropy), 0.0);
      result.probe = apart->spread(is_one, step.row.size(1));
    }
    InfluenceOptions options = o.influence();
    options.poll = step.poll;
    SurrogateRequest request{step.batch, rows,           probes,  {},
                             {},         step.forbidden, options, step.context};
    request.disjoint = o.probes != ProbeRule::candidates;
    if (o.draft == DraftKind::token) {
      request.tokens = steered_shape.pack(candidates.of(p.token));
    } else {
      request.features =
          step.features.index_select(0, steered_shape.pack(candidates.of(step.place)));
    }
    const SurrogateScores surrogate = surrogate_scores(step.model, request);
    // What is not finite becomes a score of NaN, which is an error: a probe's entropy makes it of
    // its whole sequence.
    const at::Tensor nats = at::where(probes.valid, surrogate.entropy, 0.0);
    const at::Tensor drafted = probe_shape->unpack(nats, 0.0).isfinite().all(1, /*keepdim=*/true);
    const at::Tensor given = steered_shape.unpack(surrogate.tis, 0.0);
    at::Tensor tis = at::where(given.isfinite() & drafted, given, kNan);
    influence = at::where(real, tis, 0.0);
    if (o.rule == ScoreRule::nats) {
      // influence_scale() of each sequence.
      const at::Tensor most = there.sum(1, true), rising = influence.clamp_min(0).sum(1, true);
      const at::Tensor scale = at::where(rising > most, most / rising, 1.0);
      tis = tis * scale;
      influence = influence * scale;
    }
    result.influence =
        candidates.into(at::full(step.row.sizes(), kNan, p.confidence.options()), real, tis);
    if (o.spread == 0) applies = std::move(steered);
  } else if (o.spread == 0) {
    result.score = p.confidence;
    return result;
  }
  at::Tensor scores = scores_of(step, o, candidates, influence);
  if (o.spread > 0) {
    spread_out(step, o, candidates, sure, reveals - sure_count, most_open, scores);
  }
  // Rows that confidence accepts come first and all that are no candidates last.
  const auto edge = [&](double other) { return at::where(candidates.is_one, scores, other); };
  const at::Tensor below = edge(kInfinity).amin(1, true) - 2.0,
                   above = edge(-kInfinity).amax(1, true) + 1.0;
  at::Tensor score = candidates.into(p.confidence + below, candidates.is_one, scores);
  score = at::where(sure, p.confidence + above, score);
  result.score = at::where(applies.unsqueeze(1), score, p.confidence);
  return result;
}

}  // namespace tabes
