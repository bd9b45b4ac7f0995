#include "tabes/boe.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "decode/rows.h"
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

// One step's numbers on the host.
struct Column {
  explicit Column(const at::Tensor& t) : held(t.to(at::kCPU, at::kDouble).contiguous()) {}
  const double* data() const { return held.const_data_ptr<double>(); }
  double operator[](int64_t i) const { return data()[i]; }
  at::Tensor held;
};

}  // namespace

std::vector<double> minmax(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const double base = *low, width = *high - *low;
  std::vector<double> scaled(values.size(), 1.0);
  if (width != 0) {  // NaN as well, so that it reaches the scores
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
    score[i] =
        std::pow(confidence[i], weights.gamma) * score[i] - weights.anti_collapse * below * below;
  }
  return score;
}

std::vector<int64_t> largest(const double* values, int64_t begin, int64_t end, int64_t count) {
  std::vector<int64_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  count = std::min<int64_t>(count, static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t x, int64_t y) {
    return values[x] > values[y] || (values[x] == values[y] && x < y);
  });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
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

Scores BoE::score(const StepContext& context) const {
  const BoEOptions& o = options_;
  const RowSet& eligible = context.eligible;
  const int64_t n = eligible.count();
  const Column confidence(context.predictions.confidence), entropy(context.predictions.entropy);
  const Column filter(o.prefilter == Prefilter::margin ? context.predictions.margin
                                                       : context.predictions.confidence);
  const at::Tensor row_numbers = eligible.rows.to(at::kCPU);
  const int64_t* row = row_numbers.const_data_ptr<int64_t>();

  // Candidates and probes of each sequence, as numbers among the eligible rows.
  std::vector<int64_t> candidates, probes, cu_c{0}, cu_p{0};
  for (size_t b = 0; b + 1 < eligible.cu_rows.size(); ++b) {
    const int64_t begin = eligible.cu_rows[b], end = eligible.cu_rows[b + 1];
    const int64_t quota = context.quota[b];
    const double asked =
        o.per_quota ? std::ceil(o.n_candidates * static_cast<double>(quota)) : o.n_candidates;
    const int64_t r = static_cast<int64_t>(std::min(asked, static_cast<double>(end - begin)));
    if (context.step[b] % o.every == 0 && end - begin >= o.min_masked && r > quota &&
        r < end - begin) {
      const std::vector<int64_t> chosen = largest(filter.data(), begin, end, r);
      std::vector<int64_t> rest;
      for (int64_t i = begin; i < end; ++i) {
        if (!std::binary_search(chosen.begin(), chosen.end(), i)) rest.push_back(i);
      }
      const int64_t length = context.batch.cu_seqlens[b + 1] - context.batch.cu_seqlens[b];
      const auto most = static_cast<int64_t>(std::ceil(o.rho * static_cast<double>(length)));
      std::vector<double> rank;
      for (const int64_t i : rest) {
        switch (o.probes) {
          case ProbeRule::least_entropic:
            rank.push_back(-entropy[i]);
            break;
          case ProbeRule::most_entropic:
            rank.push_back(entropy[i]);
            break;
          case ProbeRule::random:
            rank.push_back(counter_uniform(context.seed, Stream::probe, context.sequence[b],
                                           row[i] - context.batch.cu_seqlens[b], context.step[b]));
            break;
          case ProbeRule::nearest: {
            int64_t distance = length;
            for (const int64_t c : chosen) distance = std::min(distance, std::abs(row[i] - row[c]));
            rank.push_back(-static_cast<double>(distance));
            break;
          }
        }
      }
      for (const int64_t i : largest(rank.data(), 0, static_cast<int64_t>(rest.size()), most)) {
        probes.push_back(rest[i]);
      }
      candidates.insert(candidates.end(), chosen.begin(), chosen.end());
    }
    cu_c.push_back(static_cast<int64_t>(candidates.size()));
    cu_p.push_back(static_cast<int64_t>(probes.size()));
  }
  if (candidates.empty()) return Scores(confidence.held);

  const auto rows_of = [&](const std::vector<int64_t>& numbers, const std::vector<int64_t>& cu) {
    std::vector<int64_t> rows;
    for (const int64_t i : numbers) rows.push_back(row[i]);
    return row_set(std::move(rows), cu, context.model.info().device);
  };
  InfluenceOptions options = influence_options(o);
  // A model without frozen contexts is steered all the same, at the exact one's cost.
  if (!context.context) options.context = ContextKind::exact;
  options.poll = context.poll;
  const RowSet candidate_rows = rows_of(candidates, cu_c), probe_rows = rows_of(probes, cu_p);
  const at::Tensor features =
      context.features.index_select(0, to_tensor(candidates, context.features.device()));
  const SurrogateScores surrogate =
      surrogate_scores(context.model, {context.batch, candidate_rows, probe_rows, features,
                                       context.forbidden, options, context.context});

  Scores result(confidence.held.clone());
  result.influence = at::full({n}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  result.probes = at::zeros({n}, at::kBool);
  result.forward_rows = surrogate.forward_rows;
  result.backward_rows = surrogate.backward_rows;
  result.head_rows = surrogate.head_rows;
  double* score = result.score.data_ptr<double>();
  double* influence = result.influence.data_ptr<double>();
  const double* tis = surrogate.tis.const_data_ptr<double>();
  for (const int64_t i : probes) result.probes.data_ptr<bool>()[i] = true;
  for (size_t b = 0; b + 1 < cu_c.size(); ++b) {
    if (cu_c[b] == cu_c[b + 1]) continue;
    const double left = static_cast<double>(context.steps[b] - context.step[b]) /
                        static_cast<double>(context.steps[b]);
    std::vector<double> c, t, h;
    for (int64_t k = cu_c[b]; k < cu_c[b + 1]; ++k) {
      c.push_back(confidence[candidates[k]]);
      h.push_back(entropy[candidates[k]]);
      t.push_back(tis[k]);
      influence[candidates[k]] = tis[k];
    }
    // No candidate's score is below -lambda h_max^2; every other row's is.
    const double below = 1.0 + o.anti_collapse * o.h_max * o.h_max;
    for (int64_t i = eligible.cu_rows[b]; i < eligible.cu_rows[b + 1]; ++i) score[i] -= below + 1.0;
    const std::vector<double> own = boe_scores(c, t, h, {o.gamma, o.anti_collapse, o.h_max * left});
    for (size_t k = 0; k < own.size(); ++k)
      score[candidates[cu_c[b] + static_cast<int64_t>(k)]] = own[k];
  }
  return result;
}

}  // namespace tabes
