#include "tabes/boe.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "batch/column.h"
#include "batch/rows.h"
#include "batch/select.h"
#include "messages.h"
#include "random/philox.h"
#include "steering/score.h"
#include "steering/surrogate.h"

namespace tabes {
namespace {

InfluenceOptions influence_options(const BoEOptions& o) {
  InfluenceOptions i;
  i.alpha = o.alpha;
  i.tau = o.tau;
  i.halo = o.halo;
  i.context = o.context;
  i.adjoint = o.adjoint;
  return i;
}

}  // namespace

std::vector<double> minmax(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double base = *low, width = *high - *low;
  std::vector<double> scaled(values.size(), 1.0);
  if (width != 0) {
    std::transform(values.begin(), values.end(), scaled.begin(),
                   [&](double v) { return (v - base) / width; });
  }
  return scaled;
}

std::vector<double> boe_scores(const std::vector<double>& confidence,
                               const std::vector<double>& influence,
                               const std::vector<double>& entropy, const ScoreWeights& weights) {
  std::vector<double> score = minmax(influence);
  for (size_t i = 0; i < score.size(); ++i) {
    const double below = std::max(0.0, weights.floor - entropy[i]);
    const double first = weights.weight < 0
                             ? std::pow(confidence[i], weights.gamma) * score[i]
                             : weights.gamma * std::log(std::max(confidence[i], 1e-300)) +
                                   weights.weight * influence[i];
    score[i] = first - weights.anti_collapse * below * below;
  }
  return score;
}

BoEOptions BoEOptions::paper() {
  BoEOptions o;
  o.n_candidates = 3;
  o.per_quota = false;
  o.alpha = {1.0};
  o.tau = 0.5;
  o.gamma = 1.0;
  o.anti_collapse = 0.2;
  o.h_max = 0.3;
  o.rho = 0.25;
  o.probes = ProbeRule::most_entropic;
  o.context = ContextKind::exact;
  return o;
}

BoE::BoE(BoEOptions options) : options_(std::move(options)) {
  const BoEOptions& o = options_;
  check(influence_options(o));
  const auto require = [](bool ok, const char* what, double value) {
    if (!ok) refuse("BoE: ", what, ", not ", value);
  };
  require(std::isfinite(o.n_candidates) && o.n_candidates >= 1, "n_candidates must be at least 1",
          o.n_candidates);
  require(o.per_quota || o.n_candidates == std::floor(o.n_candidates),
          "n_candidates as a number of rows must be whole", o.n_candidates);
  require(std::isfinite(o.gamma) && o.gamma >= 0, "gamma must be 0 or above", o.gamma);
  require(std::isfinite(o.weight) && o.weight >= 0, "weight must be 0 or above", o.weight);
  require(std::isfinite(o.entropy_budget) && o.entropy_budget >= 0,
          "entropy_budget must be 0 (the quota) or above", o.entropy_budget);
  require(std::isfinite(o.anti_collapse) && o.anti_collapse >= 0,
          "anti_collapse must be 0 or above", o.anti_collapse);
  require(std::isfinite(o.h_max) && o.h_max >= 0, "h_max must be 0 or above", o.h_max);
  require(o.rho > 0 && o.rho <= 1, "rho must be above 0 and at most 1", o.rho);
  require(o.every >= 1, "every must be at least 1", static_cast<double>(o.every));
  require(o.min_masked >= 0, "min_masked must be 0 or above", static_cast<double>(o.min_masked));
}

bool BoE::wants_context(const std::vector<int64_t>& step) const {
  return options_.context == ContextKind::frozen &&
         std::any_of(step.begin(), step.end(), [&](int64_t s) { return s % options_.every == 0; });
}

namespace {

// What the policy sees, on the host.
struct Step {
  Step(const StepContext& given, const BoEOptions& o)
      : context(given),
        confidence(given.predictions.confidence),
        entropy(given.predictions.entropy),
        filter(o.prefilter == Prefilter::margin ? given.predictions.margin
                                                : given.predictions.confidence),
        waiting_entropy(given.waiting.count() > 0 ? given.waiting_entropy : at::zeros({0})),
        rows(given.eligible.rows.to(at::kCPU)),
        waiting_rows(given.waiting.rows.to(at::kCPU)) {}

  int64_t row(int64_t i) const { return rows.const_data_ptr<int64_t>()[i]; }
  int64_t waiting_row(int64_t i) const { return waiting_rows.const_data_ptr<int64_t>()[i]; }

  const StepContext& context;
  Column confidence, entropy, filter, waiting_entropy;
  at::Tensor rows, waiting_rows;
};

// How many of the rows [begin, end), by falling order, have entropies that sum to at most the
// budget but for the largest of them; at least one.
int64_t within_budget(const double* order, const double* entropy, int64_t begin, int64_t end,
                      double budget) {
  std::vector<int64_t> rows(end - begin);
  std::iota(rows.begin(), rows.end(), begin);
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int64_t x, int64_t y) { return order[x] > order[y]; });
  double sum = 0, most = 0;
  int64_t count = 0;
  for (const int64_t i : rows) {
    sum += entropy[i];
    most = std::max(most, entropy[i]);
    if (count > 0 && sum - most > budget) break;
    ++count;
  }
  return count;
}

// Candidates of every sequence, as numbers among the eligible rows, and probes, as rows.
struct Sets {
  std::vector<int64_t> candidates, probes, cu_candidates{0}, cu_probes{0};
};

// How early a row becomes a probe beside the candidates `chosen` of sequence b.
double probe_rank(const Step& step, ProbeRule rule, size_t b, const std::vector<int64_t>& chosen,
                  int64_t row, double entropy) {
  const StepContext& c = step.context;
  switch (rule) {
    case ProbeRule::least_entropic:
      return -entropy;
    case ProbeRule::most_entropic:
      return entropy;
    case ProbeRule::random:
      return counter_uniform(c.seed, Stream::probe, c.sequence[b], row - c.batch.cu_seqlens[b],
                             c.step[b]);
    case ProbeRule::nearest: {
      int64_t distance = std::numeric_limits<int64_t>::max();
      for (const int64_t other : chosen) {
        distance = std::min(distance, std::abs(row - step.row(other)));
      }
      return -static_cast<double>(distance);
    }
  }
  TORCH_INTERNAL_ASSERT(false, "unknown probe rule");
}

// Adds sequence b's candidates and probes, none if the gradient could change nothing.
void choose(const Step& step, const BoEOptions& o, size_t b, Sets& sets) {
  const StepContext& c = step.context;
  const int64_t begin = c.eligible.cu_rows[b], end = c.eligible.cu_rows[b + 1];
  const int64_t reveals =
      o.entropy_budget > 0
          ? within_budget(step.confidence.data(), step.entropy.data(), begin, end, o.entropy_budget)
          : c.quota[b];
  const double asked =
      o.per_quota ? std::ceil(o.n_candidates * static_cast<double>(reveals)) : o.n_candidates;
  const auto r = static_cast<int64_t>(std::min(asked, static_cast<double>(end - begin)));
  const int64_t waiting = c.waiting.cu_rows[b + 1] - c.waiting.cu_rows[b];
  if (c.step[b] % o.every == 0 && end - begin >= o.min_masked && r > reveals &&
      r < end - begin + waiting) {
    const std::vector<int64_t> chosen = largest(step.filter.data(), begin, end, r);
    std::vector<int64_t> rest;
    std::vector<double> order;
    const auto add = [&](int64_t row, double entropy) {
      rest.push_back(row);
      order.push_back(probe_rank(step, o.probes, b, chosen, row, entropy));
    };
    for (int64_t i = begin; i < end; ++i) {
      if (!std::binary_search(chosen.begin(), chosen.end(), i)) add(step.row(i), step.entropy[i]);
    }
    for (int64_t i = c.waiting.cu_rows[b]; i < c.waiting.cu_rows[b + 1]; ++i) {
      add(step.waiting_row(i), step.waiting_entropy[i]);
    }
    const int64_t length = c.batch.cu_seqlens[b + 1] - c.batch.cu_seqlens[b];
    const auto most = static_cast<int64_t>(std::ceil(o.rho * static_cast<double>(length)));
    for (const int64_t i : largest(order.data(), 0, static_cast<int64_t>(rest.size()), most)) {
      sets.probes.push_back(rest[i]);
    }
    sets.candidates.insert(sets.candidates.end(), chosen.begin(), chosen.end());
  }
  sets.cu_candidates.push_back(static_cast<int64_t>(sets.candidates.size()));
  sets.cu_probes.push_back(static_cast<int64_t>(sets.probes.size()));
}

// Turns the confidences in `score` of a steered sequence b into BoE's scores.
void rank(const Step& step, const BoEOptions& o, size_t b, const Sets& sets,
          const double* influence, double* score) {
  const StepContext& context = step.context;
  const auto first = sets.candidates.begin() + sets.cu_candidates[b];
  const std::vector<int64_t> own(first, sets.candidates.begin() + sets.cu_candidates[b + 1]);
  if (own.empty()) return;
  std::vector<double> c, t, h;
  for (const int64_t i : own) {
    c.push_back(step.confidence[i]);
    t.push_back(influence[i]);
    h.push_back(step.entropy[i]);
  }
  const double left = static_cast<double>(context.steps[b] - context.step[b]) /
                      static_cast<double>(context.steps[b]);
  const std::vector<double> scores = boe_scores(
      c, t, h,
      {o.gamma, o.anti_collapse, o.h_max * left, o.rule == ScoreRule::nats ? o.weight : -1.0});
  // Every other row comes after the last candidate; confidences are at most 1.
  const double below = *std::min_element(scores.begin(), scores.end()) - 2.0;
  for (int64_t i = context.eligible.cu_rows[b]; i < context.eligible.cu_rows[b + 1]; ++i) {
    score[i] += below;
  }
  for (size_t k = 0; k < own.size(); ++k) score[own[k]] = scores[k];
}

}  // namespace

Decision BoE::decide(const StepContext& context) const {
  const BoEOptions& o = options_;
  const Step step(context, o);
  Sets sets;
  for (size_t b = 0; b + 1 < context.eligible.cu_rows.size(); ++b) choose(step, o, b, sets);
  const auto& cu = context.eligible.cu_rows;
  const auto with_counts = [&](Decision decision) {
    for (size_t b = 0; o.entropy_budget > 0 && b + 1 < cu.size(); ++b) {
      decision.count.push_back(within_budget(decision.score.const_data_ptr<double>(),
                                             step.entropy.data(), cu[b], cu[b + 1],
                                             o.entropy_budget));
    }
    return decision;
  };
  if (sets.candidates.empty()) return with_counts(Decision(step.confidence.held));

  InfluenceOptions options = influence_options(o);
  // A model without frozen contexts is steered all the same, at the exact one's cost.
  if (!context.context) options.context = ContextKind::exact;
  options.poll = context.poll;
  const at::Device device = context.model.info().device;
  std::vector<int64_t> candidate_rows;
  for (const int64_t i : sets.candidates) candidate_rows.push_back(step.row(i));
  const RowSet candidates = row_set(std::move(candidate_rows), sets.cu_candidates, device);
  const RowSet probes = row_set(sets.probes, sets.cu_probes, device);
  const at::Tensor features =
      context.features.index_select(0, to_tensor(sets.candidates, context.features.device()));
  const SurrogateScores surrogate = surrogate_scores(
      context.model,
      {context.batch, candidates, probes, features, context.forbidden, options, context.context});

  const int64_t n = context.eligible.count();
  Decision result(step.confidence.held.clone());
  result.influence = at::full({n}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  result.probes = sets.probes;
  result.forward_rows = surrogate.forward_rows;
  result.backward_rows = surrogate.backward_rows;
  result.head_rows = surrogate.head_rows;
  double* influence = result.influence.data_ptr<double>();
  const double* tis = surrogate.tis.const_data_ptr<double>();
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    for (int64_t k = sets.cu_candidates[b]; k < sets.cu_candidates[b + 1]; ++k) {
      const int64_t i = sets.candidates[k];
      if (!std::isfinite(tis[k])) {
        throw NumericsError(text("the influence of sequence ", context.place[b], ", position ",
                                 step.row(i) - context.batch.cu_seqlens[b],
                                 " is not a number; check the checkpoint and try dtype float32"));
      }
      influence[i] = tis[k];
    }
    rank(step, o, b, sets, influence, result.score.data_ptr<double>());
  }
  return with_counts(std::move(result));
}

}  // namespace tabes
